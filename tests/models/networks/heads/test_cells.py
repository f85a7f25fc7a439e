"""Cells: decoders of every shape, noise, a discriminator that learns beside the generator, each from its own loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losses.errors import NetworkError
from models.networks.heads.cells import AdversarialCell, AutoEncoderCell, DenoisingCell, decoder

SHAPES = {
    "vector from vector": ((5,), (7,)),
    "image from vector": ((5,), (3, 4, 6)),
    "halved": ((6, 14, 14), (1, 28, 28)),
    "odd, halved": ((6, 4, 3), (2, 7, 5)),
    "pooled without the last row": ((6, 3, 3), (2, 7, 7)),
    "same size": ((6, 7, 7), (4, 7, 7)),
    "several halvings": ((8, 4, 4), (3, 32, 32)),
    "one position": ((8, 1, 1), (3, 8, 8)),
    "sides apart": ((8, 4, 8), (3, 8, 8)),
    "sides far apart": ((8, 2, 8), (3, 8, 8)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_decoders_rebuild_the_shape_and_every_pixel_reads_features(name):
    read, rebuilt = SHAPES[name]
    layer, features = decoder(read, rebuilt), torch.randn(2, *read, requires_grad=True)
    found = layer(features)
    assert found.shape == (2, *rebuilt)
    for parameter in layer.parameters():
        nn.init.ones_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    assert (layer(torch.ones(1, *read)) > 0).all()
    assert len([*layer.parameters()]) == 2


def test_a_decoder_of_halved_maps_is_the_counterpart_of_a_convolution_of_stride_2():
    layer = decoder((6, 14, 14), (1, 28, 28))
    assert isinstance(layer, nn.ConvTranspose2d)
    assert (layer.kernel_size, layer.stride, layer.padding, layer.output_padding) == ((3, 3), (2, 2), (1, 1), (1, 1))
    linear = decoder((6,), (1, 2, 3))
    x = torch.randn(4, 6)
    torch.testing.assert_close(linear(x), F.linear(x, linear[1].weight, linear[1].bias).view(4, 1, 2, 3))


def test_maps_that_cannot_be_rebuilt_are_refused():
    with pytest.raises(NetworkError, match="No transposed convolution makes maps of 5×5 from 4×4"):
        decoder((2, 4, 4), (1, 5, 5))


def test_reconstruction_by_hand():
    cell = AutoEncoderCell((3,), (2,))
    linear, features, target = cell.decoder[1], torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        linear.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    loss, parts = cell.judge(features, target)
    assert loss.item() == pytest.approx((1 + 1 + 4) / 3)
    assert parts == {"reconstruction": loss}
    x = torch.randn(4, 3)
    assert cell.disturbed(x) is x
    assert not cell.disturbs
    assert cell.learning_apart() == []


def test_noise_has_the_deviation_and_is_drawn_anew():
    cell, x = DenoisingCell((100,), (5,), noise=0.3), torch.randn(1000, 100)
    first, second = cell.disturbed(x), cell.disturbed(x)
    assert (first - x).std().item() == pytest.approx(0.3, rel=0.02)
    assert (first - x).mean().item() == pytest.approx(0, abs=0.01)
    assert not torch.equal(first, second)
    assert DenoisingCell((4,), (2,)).noise == 0.3
    assert cell.disturbs
    assert torch.equal(DenoisingCell((100,), (5,), noise=0.0).disturbed(x), x)


def adversarial(**options):
    torch.manual_seed(0)
    cell = AdversarialCell((2, 3, 3), (5,), **options)
    torch.manual_seed(1)
    return cell, torch.randn(6, 5, requires_grad=True), torch.randn(6, 2, 3, 3)


def test_the_discriminator_is_as_stated():
    cell, *_ = adversarial()
    flat, first, leaky, last = cell.discriminator
    assert isinstance(flat, nn.Flatten)
    assert (first.in_features, first.out_features, leaky.negative_slope) == (18, 256, 0.2)
    assert (last.in_features, last.out_features) == (256, 1)
    (group,) = cell.learning_apart()
    assert (group["lr"], group["betas"]) == (2e-4, (0.5, 0.999))
    assert [*map(id, group["params"])] == [*map(id, cell.discriminator.parameters())]
    assert (cell.weight, cell.reconstruction) == (0.1, 1.0)


@pytest.mark.parametrize("weights", [(0.1, 1.0), (0.7, 0.0), (0.0, 0.4)])
def test_each_part_learns_from_its_own_loss_alone(weights):
    """Beside two backward passes, each through a graph of its own, with the weights of the other held fixed."""
    weight, reconstruction = weights
    cell, features, target = adversarial(weight=weight, reconstruction=reconstruction, width=7)
    loss, parts = cell.judge(features, target)
    loss.backward()
    ours = [p.grad.clone() for p in cell.parameters()] + [features.grad.clone()]
    cell.zero_grad()
    features.grad = None

    rebuilt = cell.decoder(features)
    cell.discriminator.requires_grad_(False)
    entropy = F.binary_cross_entropy_with_logits
    told = entropy(cell.discriminator(rebuilt), torch.ones(6, 1))
    error = (rebuilt - target).square().mean()
    (reconstruction * error + weight * told).backward()
    cell.discriminator.requires_grad_(True)
    real, fakes = cell.discriminator(target), cell.discriminator(rebuilt.detach())
    judged = entropy(real, torch.ones(6, 1)) + entropy(fakes, torch.zeros(6, 1))
    judged.backward()
    for one, other in zip(ours, [*(p.grad for p in cell.parameters()), features.grad], strict=True):
        torch.testing.assert_close(one, other)
    right = {"reconstruction": error, "generator": told, "discriminator": judged}
    for name, value in right.items():
        torch.testing.assert_close(parts[name], value)
    share = (sum(x > 0 for x in real.flatten()) + sum(x <= 0 for x in fakes.flatten())) / 12
    assert parts["discriminator_accuracy"].item() == pytest.approx(share.item())


def test_no_reconstruction_leaves_the_adversarial_loss_alone():
    cell, features, target = adversarial(reconstruction=0.0, width=7)
    other = AdversarialCell((2, 3, 3), (5,), reconstruction=0.0, width=7)
    other.load_state_dict(cell.state_dict())
    gradients = []
    for judge, real in ((cell, target), (other, target + 5)):
        features.grad = None
        judge.judge(features, real)[0].backward()
        gradients.append(features.grad)
    torch.testing.assert_close(*gradients)  # what is real is nothing to the generator, but through the discriminator
    assert gradients[0].any()
