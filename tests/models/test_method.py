"""What the command line may ask of any method."""

import pytest
import torch

from experiments.cli import METHODS
from models import Backprop, BlockwiseSSL, ClosedFormMLP, LocalLearning, Method


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_one(method):
    assert issubclass(method, Method)
    assert issubclass(method, LocalLearning) == (method is not ClosedFormMLP)


def test_methods_with_labels_predict_classes():
    assert Backprop.predicts_classes
    assert ClosedFormMLP.predicts_classes
    assert not BlockwiseSSL.predicts_classes


def test_a_method_beside_the_loop_names_its_blocks_and_must_say_the_rest():
    class Bare(Method):
        num_blocks = 2

    bare, images = Bare(), torch.zeros(1, 1, 1, 1)
    assert bare.block_names == ["block1", "block2"]
    assert (bare.num_groups, bare.monitor, bare.latest) == (1, None, {})
    for question in (bare.block_features, bare.block_logits):
        with pytest.raises(NotImplementedError, match="Bare"):
            question(images)
    with pytest.raises(NotImplementedError, match="Method does not say how many blocks"):
        Method().num_blocks  # noqa: B018
