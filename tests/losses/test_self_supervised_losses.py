"""Self-supervised losses: lightly's against the published formulas, ours against lightly's, over two processes."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from reference.self_supervised import barlow_twins, nt_xent, vicreg
from torch.nn import functional as F

from losses import SubsampledNTXent, correlation_parts, effective_rank, largest_deviation, pretext_top1


def pair(images=12, width=6, seed=0, noise=0.5):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(images, width, generator=generator, dtype=torch.float64)
    return a, a + noise * torch.randn(images, width, generator=generator, dtype=torch.float64)


def test_lightlys_losses_are_the_published_formulas():
    a, b = pair()
    assert BarlowTwinsLoss(0.0051)(a, b).item() == pytest.approx(barlow_twins(a, b, 0.0051).item(), rel=1e-9)
    assert NTXentLoss(0.2)(a, b).item() == pytest.approx(nt_xent(a, b, 0.2).item(), rel=1e-9)
    assert VICRegLoss()(a, b).item() == pytest.approx(vicreg(a, b).item(), rel=1e-9)


def test_parts_add_up_to_barlow_twins():
    a, b = pair()
    invariance, redundancy = correlation_parts(a, b)
    assert (invariance + 0.0051 * redundancy).item() == pytest.approx(BarlowTwinsLoss(0.0051)(a, b).item(), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("negatives", [None, 22, 1000])
def test_all_negatives_give_nt_xent_and_its_gradient(temperature, negatives):
    gradients = []
    for loss in (SubsampledNTXent(temperature, negatives), NTXentLoss(temperature)):
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
    temperature, negatives = 0.5, 2
    z, c = F.normalize(torch.cat([a, b]), dim=1), F.normalize(context, dim=1).repeat(2, 1)
    losses = []
    for i in range(10):
        partner = (i + 5) % 10
        others = [j for j in range(10) if j not in (i, partner)]
        # Both views of an image are equally close: order the images, take one pair.
        chosen = sorted(others, key=lambda j: -sign * float(c[i].float() @ c[j].float()))[:negatives]
        logits = torch.stack([z[i] @ z[j] for j in (partner, *chosen)]) / temperature
        losses.append(-logits.log_softmax(0)[0])
    ours = SubsampledNTXent(temperature, negatives, choice)(a, b, context)
    assert ours.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


def test_random_negatives_are_unbiased_and_count():
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


# -- two processes ------------------------------------------------------------------------------------------


def halves(make_loss):
    """Images of the two processes.

    lightly's Barlow Twins standardises each process's images by their own statistics. It can equal one process
    only if these agree: the second half repeats the first with the other view's images in another order, so that
    every view has the same moments, but the correlation between the views is another.
    """
    a, b = pair(images=8)
    if make_loss is _barlow:
        return [(a[:4], b[:4]), (a[:4], b[[1, 0, 3, 2]])]
    return [(a[:4], b[:4]), (a[4:], b[4:])]


def _gradient_of_part(rank, address, make_loss, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    try:
        a, b = halves(make_loss)[rank]
        weight = torch.eye(6, dtype=torch.float64).requires_grad_()  # stands for the network
        make_loss()(a @ weight, b @ weight).backward()
        dist.all_reduce(weight.grad)
        queue.put((rank, (weight.grad / 2).tolist()))
    finally:
        dist.destroy_process_group()


def _barlow():
    return BarlowTwinsLoss(gather_distributed=True)


def _contrastive():
    return NTXentLoss(0.5, gather_distributed=True)


@pytest.mark.parametrize("make_loss", [_barlow, _contrastive])
def test_two_processes_give_the_gradient_of_one(make_loss, tmp_path):
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_gradient_of_part, args=(rank, tmp_path / "address", make_loss, queue))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    a, b = (torch.cat(views) for views in zip(*halves(make_loss), strict=True))
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    make_loss()(a @ weight, b @ weight).backward()
    assert weight.grad.abs().max() > 1e-3
    for rank in (0, 1):
        assert torch.allclose(torch.tensor(found[rank], dtype=torch.float64), weight.grad, rtol=1e-9, atol=1e-12)
