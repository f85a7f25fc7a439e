"""Output losses as local losses: of every block, of neuron groups, with weights, in evaluation, end to end."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from training import evaluated

from datamodules.batch import Batch
from experiments.measure.yardstick import end_to_end
from losses import CrossEntropy, ExpGB, LinearOutput, Pow3GB, SoftmaxMSE
from losses.diversity import diversity
from losses.errors import UsageError
from models.methods.backprop import Backprop
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.infopro import InfoPro
from models.methods.neuron_groups import NeuronGroups
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

SHAPE, CLASSES = (1, 8, 8), 5
network = partial(VGG, plan=(8, 8, "M", 16, 16))
head = partial(AuxHead, hidden=8)


def draw(size=12, weights=None):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(CLASSES, (size,), generator=generator), weights=weights)


def decoupled(**arguments):
    torch.manual_seed(0)
    return DecoupledGreedy(network, SHAPE, CLASSES, 3, Cut(), head, **arguments).double()


def groups(**arguments):
    return NeuronGroups(network, SHAPE, CLASSES, 2, 2, head=head, **arguments).double()


def local_losses(model, batch):
    """Loss of every block and its logits."""
    found, x = [], batch.images
    for k in range(len(model.heads)):
        features = model.blocks[k](x) if k < model.num_blocks else x  # of a final head
        found.append((model.local_loss(k, features, batch), model.logits_of[k]))
        x = features.detach()
    return found


@pytest.mark.parametrize("make", [CrossEntropy, ExpGB, Pow3GB, LinearOutput, SoftmaxMSE])
def test_every_blocks_loss_is_the_mean_of_its_samples_output_losses_in_training_and_evaluation(make):
    model, batch = decoupled(output_loss=make).eval(), draw()
    metrics = evaluated(model, batch)
    for k, (loss, logits) in enumerate(local_losses(model, batch), start=1):
        assert not logits.requires_grad
        torch.testing.assert_close(loss.detach(), make()(logits, batch.labels).mean())
        torch.testing.assert_close(metrics[f"block{k}/loss"], loss.detach(), check_dtype=False)
        assert metrics[f"block{k}/top1"] == (logits.argmax(1) == batch.labels).float().mean()


def test_losses_that_are_not_one_per_sample_are_refused():
    class Forgetful(DecoupledGreedy):
        def sample_losses(self, logits, labels):
            return F.cross_entropy(logits, labels)

    model = Forgetful(network, SHAPE, CLASSES, 3, Cut(), head).double()
    for batch in (draw(), draw(1), draw(weights=torch.ones(12))):
        with pytest.raises(UsageError, match=r'sample_losses of Forgetful .* shape \(\): .*reduction="none"'):
            local_losses(model, batch)


def test_groups_sum_their_output_losses_and_their_diversity():
    model, batch = groups(output_loss=ExpGB), draw()
    *blocks, (final, final_logits) = local_losses(model, batch)
    for loss, logits in blocks:
        by_group = sum(ExpGB()(z, batch.labels).mean() for z in logits.unbind(1))
        torch.testing.assert_close(loss.detach(), by_group + 0.5 * diversity(logits, batch.labels))
    torch.testing.assert_close(final.detach(), ExpGB()(final_logits, batch.labels).mean())


@pytest.mark.parametrize("build", [decoupled, groups])
def test_weights_weigh_the_samples(build):
    """Weight 0 or 3: the mean is still over the whole batch, 3/2 of that of the samples that count."""
    model, batch = build().eval(), draw(weights=torch.tensor([0.0, 3.0], dtype=torch.float64).repeat(6))
    kept = local_losses(model, Batch(batch.images[1::2], batch.labels[1::2]))
    for (one, _), (other, _) in zip(local_losses(model, batch), kept, strict=True):
        torch.testing.assert_close(one, 1.5 * other)


def test_infopro_classifies_by_the_output_loss():
    task = {"network": network, "image_shape": SHAPE, "num_classes": CLASSES, "image_mean": [0.0], "image_std": [1.0]}
    torch.manual_seed(0)
    model = InfoPro(**task, head=head, loss="softmax", output_loss=ExpGB).double()
    batch = draw()
    features = model.blocks[0](batch.images)
    rebuilt, z = model.heads[0](features)
    rebuild = F.binary_cross_entropy_with_logits(rebuilt, batch.images.clamp(0, 1))
    losses = [5 * rebuild + 1 * ExpGB()(z, batch.labels).mean()]
    last = model.blocks[1](features)
    losses.append(ExpGB()(model.heads[1](last), batch.labels).mean())
    for k, x in enumerate((features, last)):
        torch.testing.assert_close(model.local_loss(k, x, batch), losses[k])


def test_the_end_to_end_counterpart_has_the_same_output_loss():
    whole = end_to_end(decoupled(output_loss=partial(ExpGB, alpha=0.3)))
    assert isinstance(whole, Backprop)
    assert isinstance(whole.output_loss, ExpGB)
    assert whole.output_loss.alpha == 0.3
