"""What the command line may ask of any method."""

import inspect
import pkgutil
from importlib import import_module

import pytest
import torch

from models import methods
from models.local_learning import LocalLearning
from models.method import Method
from models.methods.closed_form import ClosedFormMLP


@pytest.mark.parametrize("file", [file.name for file in pkgutil.iter_modules(methods.__path__)])
def test_a_file_of_methods_holds_one_method(file):
    own = import_module(f"models.methods.{file}")
    found = [one for one in vars(own).values() if inspect.isclass(one) and one.__module__ == own.__name__]
    (method,) = [one for one in found if issubclass(one, Method)]
    assert method.__name__.lower().startswith(file.replace("_", ""))
    assert issubclass(method, LocalLearning) == (method is not ClosedFormMLP)


def test_a_method_beside_the_loop_names_its_blocks_and_must_say_the_rest():
    class Bare(Method):
        num_blocks = 2

    bare, images = Bare(), torch.zeros(1, 1, 1, 1)
    assert bare.block_names == ["block1", "block2"]
    assert (bare.num_groups, bare.monitor, bare.latest) == (1, None, {})
    for question in (bare.block_features, bare.block_logits):
        with pytest.raises(NotImplementedError, match="Bare"):
            question(images)
