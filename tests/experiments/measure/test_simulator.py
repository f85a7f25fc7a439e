"""The simulator: closed formulas, cases by hand, and a slow reference."""

from functools import partial

import numpy as np
import pytest
from reference.handing_on import hand_on

from experiments.measure.simulator import Link, Stage, _pass_on, simulate

exactly = partial(pytest.approx, rel=1e-9)


def chain(*seconds, bytes_out=0.0):
    return [Stage([one], bytes_out) for one in seconds]


@pytest.mark.parametrize("seconds", [(1, 1, 1, 1), (3, 1, 2), (1, 2, 3), (1, 3, 1, 2), (2,)])
def test_the_slowest_sets_the_pace(seconds):
    """T = max_k(f + b + a), where transfers are hidden; the others wait, before it to send, behind it for batches."""
    flow = simulate(chain(*seconds))
    assert flow.step_seconds == exactly(max(seconds))
    slowest = seconds.index(max(seconds))
    for s, (usage, own) in enumerate(zip(flow.usage, seconds, strict=True)):
        idle = 1 - own / max(seconds)
        assert usage.computes == [exactly(own / max(seconds))]
        assert (usage.is_blocked, usage.starves) == (exactly((idle, 0)) if s < slowest else exactly((0, idle)))


@pytest.mark.parametrize(("leaves", "each"), [(1.0, 3.0), (1 / 3, 1.0)])
def test_the_fill_is_what_precedes_handing_on(leaves, each):
    """Of the whole step, as it is implemented; of the forward pass, a third of it, the cost model's efficiency."""
    batches, stages = 100, 4
    flow = simulate(chain(*[3.0] * stages), leaves=leaves, batches=batches)
    assert flow.fill_seconds == exactly((stages - 1) * each)
    assert flow.seconds == exactly(flow.fill_seconds + batches * 3.0)
    if leaves < 1:
        assert batches * 3.0 / flow.seconds == exactly(batches / (batches + (stages - 1) / 3))


def test_what_travels_hides_behind_computing_until_it_takes_longer():
    """cost_model section 2: c is the transfer that is not hidden."""
    for size, step in ((0.0, 2.0), (190.0, 2.0), (200.0, 2.0), (300.0, 3.0)):
        flow = simulate(chain(2, 2, 2, bytes_out=size), Link(bytes_per_second=100))
        assert flow.step_seconds == exactly(step)
        assert flow.fill_seconds == exactly(2 * (2 + size / 100))
        assert flow.usage[0].link == exactly(size / 100 / step)
        assert flow.usage[2].link == 0


def test_latency_is_hidden_by_two_batches_and_then_not():
    """A batch needs: word that there is room, its transfer, its arrival. Two at once are under way."""
    for latency, step in ((0.1, 2.0), (0.9, 2.0), (10.0, (2 * 10.0 + 1.0) / 2)):
        flow = simulate(chain(2, 2, bytes_out=100), Link(100, latency))
        assert flow.step_seconds == exactly(step)
        assert flow.fill_seconds == exactly(2 + 1 + latency)


def test_a_sender_is_four_batches_ahead_at_most():
    """Two that have arrived and two on their way; by hand: 10 ticks a step behind 1 tick a step."""
    steps = np.array([[1.0] * 8, [10.0] * 8])
    start, sent = _pass_on(steps, [0.0], latency=0.0, leaves=1.0)
    assert start[1].tolist() == [1, 11, 21, 31, 41, 51, 61, 71]
    # 0 is taken at once, 1 and 2 arrive, 3 and 4 are on their way; when 1 is taken, there is room for 3, and 5 is sent.
    assert sent[0].tolist() == [1, 2, 3, 4, 5, 11, 21, 31]


@pytest.mark.parametrize("seed", range(12))
def test_the_recurrence_does_what_processes_do_tick_by_tick(seed):
    draw = np.random.default_rng(seed)
    stages, batches, latency = int(draw.integers(1, 5)), 25, int(draw.integers(0, 12))
    steps = draw.integers(1, 20, (stages, batches))
    transfers = draw.integers(0, 15, stages - 1).tolist()
    start, sent = _pass_on(steps.astype(float), transfers, latency, leaves=1.0)
    expected_start, expected_sent = hand_on(steps.tolist(), transfers, latency)
    assert start.tolist() == expected_start
    assert sent.tolist() == expected_sent


def test_processes_of_a_stage_wait_for_their_slowest_and_for_each_others_features():
    stages = [Stage([1.0, 2.0], exchanged=[50.0, 50.0]), Stage([1.0])]
    flow = simulate(stages, Link(bytes_per_second=100, latency=0.25))
    assert flow.step_seconds == exactly(2 + 2 * (0.5 + 0.25))
    usage = flow.usage[0]
    assert usage.computes == exactly([1 / 3.5, 2 / 3.5])
    assert usage.exchanges == exactly(1.5 / 3.5)


def test_jitter_is_mostly_hidden_by_the_queue_but_not_within_a_stage():
    """Two equal stages in lockstep would take E max of two; handing on through a queue takes less, no less than one."""
    jitter, draw = 0.2, np.random.default_rng(1)
    spread = np.sqrt(np.log1p(jitter**2))
    lockstep = draw.lognormal(-(spread**2) / 2, spread, (2, 100_000)).max(axis=0).mean()
    assert 1.10 < lockstep < 1.12
    queued = simulate(chain(1, 1), jitter=jitter, batches=8000).step_seconds
    assert 1.0 < queued < 1 + (lockstep - 1) / 2
    together = simulate([Stage([1.0, 1.0])], jitter=jitter, batches=8000)
    assert together.step_seconds == pytest.approx(lockstep, rel=0.01)
    assert together.usage[0].computes == pytest.approx([1 / lockstep] * 2, rel=0.02)


def test_jitter_keeps_the_mean_and_its_seed():
    alone = [simulate(chain(2), jitter=0.5, batches=8000, seed=seed).step_seconds for seed in (3, 3, 4)]
    assert alone == [pytest.approx(2, rel=0.03)] * 3
    assert alone[0] == alone[1] != alone[2]
