"""Pooling heads and projectors: definitions, published counts, equality with the plain modules, memory."""

import copy

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.heads.embeddings import BiasFreeProjector, EmbeddingHead, ExpandedClassifier
from models.networks.heads.expansion import ConvExpansion
from models.networks.heads.pooling import GlobalPooling, LocalPooling
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.resnet import ResNet


def maps(*shape, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return torch.randn(*shape, dtype=dtype).relu().contiguous(memory_format=torch.channels_last)


def test_global_pooling_is_the_mean_over_positions():
    x, head = maps(3, 4, 5, 6), GlobalPooling((4, 5, 6), 99)
    assert torch.allclose(head(x), x.mean((2, 3)))
    assert head.out_features == 4


@pytest.mark.parametrize(("channels", "grid"), [(64, (2, 4)), (128, (2, 2)), (256, (1, 2)), (512, (1, 1))])
def test_local_pooling_takes_the_sheets_grids(channels, grid):
    x = maps(2, channels, 4, 8)
    head = LocalPooling((channels, 4, 8), 512)
    assert tuple(head.pool.output_size) == grid
    out = head(x).view(2, channels, *grid)
    rows, columns = 4 // grid[0], 8 // grid[1]
    assert torch.allclose(out[:, :, 0, -1], x[:, :, :rows, -columns:].mean((2, 3)))
    assert head.out_features == 512


@pytest.mark.parametrize(("shape", "width"), [((48, 4, 4), 512), ((64, 1, 1), 512), ((512, 4, 4), 256)])
def test_local_pooling_says_when_the_grid_does_not_fit(shape, width):
    with pytest.raises(NetworkError, match="choose a multiple of the channels"):
        LocalPooling(shape, width)


def test_pooling_heads_refuse_vectors():
    with pytest.raises(NetworkError, match="pools feature maps"):
        GlobalPooling((12,), 8)


@pytest.mark.parametrize("images", [1, 2, 5, 100])
def test_expansion_in_pieces_equals_the_plain_module(images):
    x = maps(7, 5, 4, 3)
    in_pieces = ConvExpansion((5, 4, 3), 8, piece_mib=images * 12 * 8 * 8 / 2**20).double()
    with torch.no_grad():
        in_pieces.bn.weight.uniform_(-1, 1), in_pieces.bn.bias.uniform_(-1, 1)
    plain = copy.deepcopy(in_pieces)
    plain.piece_mib = None
    weight = torch.randn(7, 8, dtype=torch.float64)
    results = []
    for head in (in_pieces, plain):
        images_in = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = head(images_in)
        (out * weight).sum().backward()
        results.append([out, images_in.grad, *(p.grad for p in head.parameters()), *head.buffers()])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-12, atol=1e-13)
    in_pieces.eval(), plain.eval()
    assert torch.allclose(in_pieces(x), plain(x), rtol=1e-12, atol=1e-13)


def test_expansion_keeps_its_input_and_nothing_of_its_map():
    x = maps(32, 16, 8, 8, dtype=torch.float32).requires_grad_()
    head = ConvExpansion((16, 8, 8), 256, piece_mib=0.1)
    with SavedTensorMeter([x, *head.parameters(), *head.buffers()]) as meter:
        loss = head(x).sum()
    expanded = 4 * 32 * 256 * 64
    assert meter.peak < expanded / 50  # folded weights and statistics: some C × E and C × C matrices
    loss.backward()
    head.piece_mib = None
    with SavedTensorMeter([x, *head.parameters(), *head.buffers()]) as meter:
        head(x).sum()
    assert meter.peak >= 2 * expanded
    not_expanded = ConvExpansion((16, 4, 4), 16, piece_mib=1e-6)
    assert not_expanded._images_per_piece(maps(5, 16, 4, 4)) == 5


def test_expansion_in_bfloat16_errs_as_little_as_the_plain_module():
    """Error in units of what differs between images, of outputs and of gradients that are sums over many pieces."""
    x = (1 + maps(512, 32, 4, 4, dtype=torch.float32)).bfloat16()  # far from zero, as ReLU's outputs are
    in_pieces = ConvExpansion((32, 4, 4), 128, piece_mib=1e-6)  # of one image
    exact, plain = copy.deepcopy(in_pieces), copy.deepcopy(in_pieces)
    exact.piece_mib = plain.piece_mib = None
    weight = torch.randn(512, 128).abs()  # gradients of all images add up

    def run(head, precise):
        images = (x.float() if precise else x.clone()).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            out = head(images)
        (out.float() * weight).sum().backward()
        return [out.detach().float(), *(p.grad.flatten(1).T for p in (images, head.conv.weight))]

    truth = run(exact, precise=True)
    for out, theirs, right in zip(run(in_pieces, False), run(plain, False), truth, strict=True):
        error, their_error = ((z - right).square().mean().sqrt() / right.std(dim=0).mean() for z in (out, theirs))
        assert error < 1.1 * their_error
    offset = (run(in_pieces, False)[0] - truth[0]).mean(dim=0)
    assert offset.abs().max() < 0.01 * truth[0].std(dim=0).mean()


def test_wide_kernels_are_kept_whole():
    x, head = maps(2, 4, 6, 6, dtype=torch.float32), ConvExpansion((4, 6, 6), 8, kernel=3, piece_mib=1e-6)
    normalised = nn.BatchNorm2d(8)(nn.functional.conv2d(x, head.conv.weight, padding=1))
    torch.testing.assert_close(head(x), normalised.relu().mean(dim=(2, 3)))
    with pytest.raises(NetworkError, match="odd"):
        ConvExpansion((4, 6, 6), 8, kernel=2)


def test_published_parameter_counts_of_resnet50():
    with torch.device("meta"):
        chain = ResNet((3, 224, 224), 1000, 50)
        blocks = cut_chain(chain, 4, Cut("published"), lambda shape: nn.Identity())
        shapes = block_shapes(chain, blocks)
        heads = [EmbeddingHead(ConvExpansion, BiasFreeProjector, shape, 2048) for shape in shapes]
        whole = EmbeddingHead(GlobalPooling, BiasFreeProjector, shapes[-1], 2048)

    def millions(*modules):
        return round(sum(p.numel() for module in modules for p in module.parameters()) / 1e6, 3)

    assert shapes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert [millions(block) for block in blocks] == [0.225, 1.220, 7.098, 14.965]
    assert millions(*blocks) == pytest.approx(23.51, abs=0.005)
    assert [millions(head.pooling) for head in heads] == pytest.approx([0.53, 1.05, 2.10, 4.20], abs=0.005)
    assert [millions(head.projector) for head in heads] == pytest.approx([151.03] * 4, abs=0.005)
    assert millions(*blocks, *heads) == pytest.approx(635.50, abs=0.005)
    assert millions(*blocks, whole) == pytest.approx(174.54, abs=0.005)


def test_projector_has_no_bias_and_ends_in_a_linear_layer():
    projector = BiasFreeProjector(6, (8, 10, 4))
    first, second, last = (nn.Linear(*widths, bias=False) for widths in ((6, 8), (8, 10), (10, 4)))
    relu = nn.ReLU(inplace=True)
    expected = [first, nn.BatchNorm1d(8), relu, second, nn.BatchNorm1d(10), relu, last]
    assert [repr(layer) for layer in projector.layers] == [repr(layer) for layer in expected]


def test_supervised_counterpart_classifies_expanded_features():
    head = ExpandedClassifier((4, 6, 6), 3, expand_dim=8)
    assert head(maps(2, 4, 6, 6, dtype=torch.float32)).shape == (2, 3)
    assert head.classifier.in_features == 8
