"""InfoNCE by its cosines, against lightly's losses and by hand; distillation; the queue; weights of widths."""

import copy

import pytest
import torch
from lightly.loss import NTXentLoss
from torch.nn import functional as F

from losses.info_nce import PairContrast, QueueContrast, distillation, info_nce, key_cosines, pair_cosines
from losses.width_weights import all_equal, by_width, whole_first


def embeddings(count=2, images=6, dim=5):
    torch.manual_seed(0)
    return [torch.randn(images, dim, dtype=torch.double, requires_grad=True) for _ in range(count)]


def unit(*some):
    return [F.normalize(z, dim=1) for z in some]


def test_in_batch_loss_is_lightlys():
    a, b = embeddings()
    ours, theirs = info_nce(PairContrast(5, 0.3)(unit(a, b)), 0.3), NTXentLoss(0.3)(a, b)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, [a, b]), torch.autograd.grad(theirs, [a, b]), strict=True):
        torch.testing.assert_close(mine, other)


def test_rows_hold_each_other_view_once_the_partner_first():
    a, b = unit(*embeddings(images=3))
    z = torch.cat([a, b])
    cosines = pair_cosines(a, b)
    for i in range(6):
        partner = (i + 3) % 6
        others = [j for j in range(6) if j not in (i, partner)]
        torch.testing.assert_close(cosines[i, 0], z[i] @ z[partner])
        expected = torch.stack([z[i] @ z[j] for j in others])
        torch.testing.assert_close(cosines[i, 1:].sort().values, expected.sort().values)


def test_loss_with_a_queue_is_lightlys():
    q, k = embeddings()
    contrast, theirs = QueueContrast(5, 0.2, size=16), NTXentLoss(0.2, memory_bank_size=(16, 5))
    theirs.memory_bank.bank = contrast.queue.bank.double()
    contrast.queue.bank = contrast.queue.bank.double()
    ours = info_nce(contrast(unit(q), *unit(k.detach())), 0.2)
    other = theirs(q, k.detach())
    torch.testing.assert_close(ours, other)
    torch.testing.assert_close(*(torch.autograd.grad(loss, q)[0] for loss in (ours, other)))


def test_queue_is_read_without_changing_and_takes_in_when_told():
    contrast = QueueContrast(5, size=16)
    first = contrast.queue.bank.clone()
    torch.testing.assert_close(first.norm(dim=1), torch.ones(16))
    q, k = (z.detach().float() for z in unit(*embeddings()))
    torch.testing.assert_close(contrast([q], k), key_cosines(q, k, first))
    contrast([q], k)
    assert torch.equal(contrast.queue.bank, first)
    contrast.enqueue(k)
    assert int(contrast.queue.bank_ptr) == 6
    assert torch.equal(contrast.queue.bank, torch.cat([k, first[6:]]))
    resumed = QueueContrast(5, size=16)
    resumed.load_state_dict(copy.deepcopy(contrast.state_dict()))
    assert torch.equal(resumed.queue.bank, contrast.queue.bank)
    assert int(resumed.queue.bank_ptr) == 6


def test_settings_are_those_of_the_papers_unless_told():
    queue, pairs = QueueContrast(2), PairContrast(2)
    assert (queue.temperature, queue.momentum, len(queue.queue.bank)) == (0.2, 0.999, 65536)
    assert (pairs.temperature, pairs.momentum) == (0.1, None)


def test_distillation_has_its_gradient_and_its_minimum():
    torch.manual_seed(0)
    teacher = torch.randn(4, 7, dtype=torch.double, requires_grad=True)
    cosines = torch.randn(4, 7, dtype=torch.double, requires_grad=True)
    tau = 5.0
    loss = tau**2 * distillation(cosines, teacher, tau)
    loss.backward()
    assert teacher.grad is None
    expected = tau * ((cosines / tau).softmax(1) - (teacher / tau).softmax(1)) / 4
    torch.testing.assert_close(cosines.grad, expected.detach())
    same = teacher.detach().clone().requires_grad_()
    smallest = distillation(same, teacher, 0.5)
    smallest.backward()
    torch.testing.assert_close(same.grad, torch.zeros_like(same))
    p = (teacher.detach() / 0.5).softmax(1)
    torch.testing.assert_close(smallest.detach(), -(p * p.log()).sum(1).mean())


@pytest.mark.parametrize(
    ("widths", "first"), [((1.0, 0.75, 0.5, 0.25), 2.5), ((1.0, 0.5, 0.25), 1.75), ((1.0, 0.5), 1.5), ((1.0,), 1.0)]
)
def test_weights_of_widths(widths, first):
    others = len(widths) - 1
    assert whole_first(widths) == [first, *[1.0] * others]
    assert all_equal(widths) == [1.0] * (others + 1)
    assert by_width(widths) == pytest.approx([len(widths) * w / sum(widths) for w in widths])
    assert sum(by_width(widths)) == pytest.approx(len(widths))
