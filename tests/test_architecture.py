"""Who imports whom: rooms are packages, arrows point down, there are no circles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("experiments", "models", "datamodules", "losses")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in PRODUCT
    for path in (ROOT / top).rglob("*.py")
}
FORBIDDEN = {
    "losses": ("models", "datamodules", "experiments"),
    "datamodules": ("models", "losses", "experiments"),
    "models": ("datamodules", "experiments"),
    "models.networks": ("models.methods", "models.parts", "models.local_learning", "models.method"),
    "experiments.run": ("experiments.report", "experiments.measure", "experiments.probing", "experiments.callbacks"),
}
"""Room → where none of its arrows may go."""


def imported(name: str) -> Iterator[str]:
    """The product's files that a file names in its imports, wherever they stand in it."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([sub for sub in submodules if sub in FILES] or [node.module])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


GRAPH = {name: {other for other in imported(name) if other in FILES and other != name} for name in FILES}


def room(name: str) -> str:
    """The package that a file is in; data modules and their views, which share batches, are one room."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    return package.removesuffix(".views")


def require_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        pytest.fail(" -> ".join(fault.args[1]))


def test_no_circle_of_files():
    require_no_circle(GRAPH)


def test_no_circle_of_rooms():
    rooms: dict[str, set[str]] = {}
    for name, others in GRAPH.items():
        rooms.setdefault(room(name), set()).update(room(other) for other in others if room(other) != room(name))
    require_no_circle(rooms)


@pytest.mark.parametrize("place", FORBIDDEN)
def test_no_arrow_points_up(place):
    arrows = [(name, other) for name in FILES if f"{name}.".startswith(f"{place}.") for other in GRAPH[name]]
    assert arrows
    assert [arrow for arrow in arrows if f"{arrow[1]}.".startswith(tuple(f"{up}." for up in FORBIDDEN[place]))] == []


def test_networks_and_losses_need_no_lightning():
    names = [name for name in FILES if name.startswith(("models.networks", "losses"))]
    line = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("models", "NeuronGroups"),
        ("models.networks", "VGG"),
        ("datamodules", "CIFAR10"),
        ("experiments.callbacks", "Entropy"),
    ],
)
def test_classes_are_found_and_shown_by_their_names_alone(package, name):
    module = import_module(package)
    assert name in dir(module)
    assert not {"Tensor", "Any", "by_name"} & set(dir(module))  # what its files import
    assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match=f"{package} has no 'Nothing'"):
        _ = module.Nothing
