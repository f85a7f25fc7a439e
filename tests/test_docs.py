"""The documents hold: links lead somewhere, what they name exists, and the README's own method trains."""

import re
from pathlib import Path

import pytest
from helpers import DIGITS

from experiments.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PATHS = re.compile(r"`((?:experiments|models|losses|datamodules|tests)/[\w/]+(?:\.\w+)?/?)")


def anchors(page: Path) -> set[str]:
    """What may follow ``#`` in a link to a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_names_lead_somewhere(page):
    text = page.read_text()
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    missing = [path for path in PATHS.findall(text) if not (ROOT / path).exists()]
    configs = re.findall(r"experiments/configs/[\w/]+\.yaml", text)
    studies = [f"experiments/studies/{name}.py" for name in re.findall(r"experiments\.studies\.(\w+)", text)]
    assert not missing + [path for path in [*configs, *studies] if not (ROOT / path).is_file()]


def test_a_method_of_ones_own_trains_as_the_readme_says(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    (tmp_path / "smooth.py").write_text(re.search(r"```python\n(.+?)```", readme, re.DOTALL)[1])
    monkeypatch.syspath_prepend(tmp_path)
    assert "--model smooth.Smooth" in readme
    main(["fit", "--config", str(DIGITS), "--model=smooth.Smooth", "--trainer.fast_dev_run=true"])
