"""Self-supervised losses: lightly's against the published formulas, ours against lightly's, over two processes."""

import math
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from torch.nn import functional as F

from losses import SubsampledNTXent, correlation_parts, effective_rank, largest_deviation, pretext_top1


def pair(images=12, width=6, seed=0, noise=0.5):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(images, width, generator=generator, dtype=torch.float64)
    return a, a + noise * torch.randn(images, width, generator=generator, dtype=torch.float64)


# -- the losses as published, without any library of theirs ---------------------------------------------------


def standardised(z):
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()  # BatchNorm without affine parameters


def barlow_twins(a, b, off_diagonal):
    c = standardised(a).T @ standardised(b) / len(a)
    eye = torch.eye(len(c), dtype=c.dtype)
    return ((c - 1) * eye).square().sum() + off_diagonal * (c * (1 - eye)).square().sum()


def nt_xent(a, b, temperature, choose=lambda i, others: others):
    """``choose``: view, and all that are not of its image → its negatives."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    losses = []
    for i in range(len(z)):
        partner = (i + len(a)) % len(z)
        others = [j for j in range(len(z)) if j not in (i, partner)]
        terms = torch.stack([torch.exp(z[i] @ z[j] / temperature) for j in (partner, *choose(i, others))])
        losses.append(-torch.log(terms[0] / terms.sum()))
    return torch.stack(losses).mean()


def vicreg(a, b):
    """Bardes et al., 2022: 25 s + 25 (v(a) + v(b)) / 2 + c(a) + c(b), as lightly halves the variance term."""
    loss = 25 * F.mse_loss(a, b)
    for z in (a, b):
        c = torch.cov(z.T)
        variance = F.relu(1 - (c.diag() + 1e-4).sqrt()).mean()
        loss = loss + 12.5 * variance + (c - c.diag().diag()).square().sum() / z.shape[1]
    return loss


def test_lightlys_losses_are_the_published_formulas():
    a, b = pair()
    assert BarlowTwinsLoss(0.0051)(a, b).item() == pytest.approx(barlow_twins(a, b, 0.0051).item(), rel=1e-9)
    assert NTXentLoss(0.2)(a, b).item() == pytest.approx(nt_xent(a, b, 0.2).item(), rel=1e-9)
    assert VICRegLoss()(a, b).item() == pytest.approx(vicreg(a, b).item(), rel=1e-9)
    invariance, redundancy = correlation_parts(a, b)
    assert (invariance + 0.0051 * redundancy).item() == pytest.approx(barlow_twins(a, b, 0.0051).item(), rel=1e-9)


# -- ours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", [None, 22, 1000])
def test_all_negatives_give_nt_xent_and_its_gradient(negatives):
    gradients = []
    for loss in (SubsampledNTXent(0.1, negatives), NTXentLoss(0.1)):
        a, b = (z.requires_grad_() for z in pair())
        value = loss(a, b)
        value.backward()
        gradients.append((value.detach(), a.grad, b.grad))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("choice", "sign"), [("most_similar", 1), ("least_similar", -1)])
def test_negatives_are_chosen_by_context(choice, sign):
    a, b = pair(images=5)
    context = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    c = F.normalize(context, dim=1).repeat(2, 1)

    def two(i, others):  # both views of one image: they are equally close
        return sorted(others, key=lambda j: -sign * float(c[i].float() @ c[j].float()))[:2]

    ours = SubsampledNTXent(0.5, 2, choice)(a, b, context)
    assert ours.item() == pytest.approx(nt_xent(a, b, 0.5, two).item(), rel=1e-6)


def test_random_negatives_vary_and_count():
    a, b = pair(images=16)
    torch.manual_seed(0)
    values = torch.stack([SubsampledNTXent(0.5, 4)(a, b) for _ in range(200)])
    assert values.std() > 0
    assert values.mean() < NTXentLoss(0.5)(a, b)  # fewer negatives: an easier task
    identical = torch.ones(8, 3, dtype=torch.float64)
    assert SubsampledNTXent(0.5, 4)(identical, identical).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize("arguments", [{"temperature": 0}, {"negatives": 0}])
def test_impossible_settings(arguments):
    with pytest.raises(ValueError, match="above 0"):
        SubsampledNTXent(**arguments)


def test_pretext_top1_and_deviation():
    a = torch.eye(4)
    assert pretext_top1(a, a) == 1
    assert pretext_top1(a, a[[1, 0, 2, 3]]) == 0.5
    assert largest_deviation(torch.ones(5, 3)) == 0
    assert largest_deviation(torch.tensor([[0.0, 1.0], [0.0, 3.0]])) == 1


def test_effective_rank_counts_directions():
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(corners) == pytest.approx(4)
    assert effective_rank(corners * torch.tensor([1.0, 1.0, 0.0, 0.0]) + 5) == pytest.approx(2)
    shares = torch.tensor([3.0, 1.0]) / 4
    expected = math.exp(-(shares * shares.log()).sum())
    assert effective_rank(corners[[0, 1, 4, 5]] * torch.tensor([3.0, 1, 1, 1])) == pytest.approx(expected)
    assert effective_rank(torch.ones(5, 3)) == 0


# -- two processes --------------------------------------------------------------------------------------------

A, B = pair(images=8)
FIRST = A[:4], B[:4]
PARTS = {
    # Each process's images are standardised by their own statistics: one process can give the same only if these agree.
    # The second half repeats the first, view b in another order: the same moments, but another correlation.
    partial(BarlowTwinsLoss, gather_distributed=True): (FIRST, (A[:4], B[[1, 0, 3, 2]])),
    partial(NTXentLoss, 0.5, gather_distributed=True): (FIRST, (A[4:], B[4:])),
}
"""Loss → the views of each process's images."""


def gradient(make_loss, a, b):
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()  # stands for the network
    make_loss()(a @ weight, b @ weight).backward()
    return weight.grad


def save_gradients(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/address", rank=rank, world_size=2)
    found = [gradient(make_loss, *parts[rank]) for make_loss, parts in PARTS.items()]
    for one in found:
        dist.all_reduce(one)
    torch.save([one / 2 for one in found], folder / str(rank))
    dist.destroy_process_group()


def test_two_processes_give_the_gradient_of_one(tmp_path):
    # A forked process need not import everything again; autograd's CUDA threads do not survive a fork.
    method = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"
    mp.start_processes(save_gradients, (tmp_path,), nprocs=2, start_method=method)
    expected = [gradient(make_loss, *map(torch.cat, zip(*parts, strict=True))) for make_loss, parts in PARTS.items()]
    for rank in (0, 1):
        for found, whole in zip(torch.load(tmp_path / str(rank)), expected, strict=True):
            assert whole.abs().max() > 1e-3
            assert torch.allclose(found, whole, rtol=1e-9, atol=1e-12)
