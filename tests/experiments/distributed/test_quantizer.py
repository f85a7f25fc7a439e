"""Quantizer with error feedback."""

import numpy as np
import pytest
import torch
from reference.huffman import huffman_bits

from experiments.distributed.entropy import shannon
from experiments.distributed.quantizer import Quantizer
from losses.errors import UsageError


def payloads(steps, count=400_000, std=0.01):
    generator = torch.Generator().manual_seed(0)
    return [std * torch.randn(count, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("rule", ["fixed_ref", "relative"])
@pytest.mark.parametrize("c", [0.3, 1, 4])
def test_error_feedback_loses_nothing(rule, c):
    quantizer, sent, given = Quantizer(c, rule), 0, 0
    for payload in payloads(20, 2000):
        quantized = quantizer("w", payload)
        sent, given = sent + quantized.values.double(), given + payload.double()
        assert int(quantized.symbols.abs().max()) < 127  # nothing is clipped: the error is at most half a step
        assert float(quantizer.residual("w").abs().max()) <= float(quantized.step) / 2 * (1 + 1e-5)
    torch.testing.assert_close(sent + quantizer.residual("w"), given, atol=1e-6, rtol=0)


def test_what_is_clipped_stays_in_the_residual():
    quantizer = Quantizer(c=0.001)
    payload = payloads(1, 2000)[0]
    quantized = quantizer("w", payload)
    assert quantized.symbols.dtype == torch.int8
    assert int(quantized.symbols.abs().max()) == 127
    torch.testing.assert_close(quantized.values + quantizer.residual("w"), payload)
    assert float(quantizer.residual("w").abs().max()) > float(quantized.step)


def test_the_step_is_c_times_the_rms():
    payload = payloads(1)[0]
    rms = float(payload.square().mean().sqrt())
    for rule in ("fixed_ref", "relative"):
        assert float(Quantizer(2.5, rule)("w", payload).step) == pytest.approx(2.5 * rms, rel=1e-4)


def test_the_reference_is_an_average_until_calibration_ends():
    quantizer, average = Quantizer(), 0.0
    for t, payload in enumerate(payloads(30, 2000), start=1):
        payload = payload * t
        average = 0.99 * average + 0.01 * float(payload.square().mean().sqrt())
        assert float(quantizer("w", payload).step) == pytest.approx(average / (1 - 0.99**t), rel=1e-4)
    quantizer.calibrating = False
    assert float(quantizer("w", 100 * payload).step) == pytest.approx(average / (1 - 0.99**30), rel=1e-4)


def frozen(c, rule, payload):
    """A quantizer whose reference is the RMS of the payload, and which has no residual."""
    quantizer = Quantizer(c, rule)
    quantizer("w", payload)
    quantizer.calibrating = False
    state = quantizer.state_dict()
    state["w"]["residual"].zero_()
    quantizer.load_state_dict(state)
    return quantizer


@pytest.mark.parametrize("c", [0.25, 0.1])
def test_twice_the_payload_takes_one_bit_more_of_a_fixed_reference(c):
    payload = payloads(1)[0]
    once = frozen(c, "fixed_ref", payload)("w", payload).symbols
    twice = frozen(c, "fixed_ref", payload)("w", 2 * payload).symbols
    assert shannon(twice) - shannon(once) == pytest.approx(1, abs=0.02)


def test_twice_the_payload_takes_the_same_symbols_of_a_relative_one():
    payload = payloads(1)[0]
    once, twice = (frozen(1, "relative", payload)("w", factor * payload).symbols for factor in (1, 2))
    assert torch.equal(once, twice)


# With error feedback: step / σ → entropy, Huffman.
@pytest.mark.parametrize(
    ("c", "entropy", "huffman"), [(0.5, 3.08, 3.13), (1, 2.16, 2.26), (2, 1.41, 1.60), (4, 0.92, 1.20)]
)
def test_bits_of_a_normal_payload_with_error_feedback(c, entropy, huffman):
    quantizer = Quantizer(c)
    symbols = [quantizer("w", payload).symbols for payload in payloads(30, 100_000)][-1]
    assert shannon(symbols) == pytest.approx(entropy, abs=0.03)
    assert huffman_bits(symbols) == pytest.approx(huffman, abs=0.03)


def test_without_clipping_a_tiny_step_changes_nothing():
    payload = payloads(1)[0]
    quantized = Quantizer(1e-5, largest=None)("w", payload)
    assert quantized.symbols.dtype == torch.int32
    torch.testing.assert_close(quantized.values, payload, atol=1e-7, rtol=0)


def test_zeros_are_sent_as_zeros_and_a_later_gradient_gets_through():
    quantizer = Quantizer()
    assert not quantizer("w", torch.zeros(2000)).symbols.any()
    quantizer.calibrating = False
    payload = payloads(1, 2000)[0]
    quantized = quantizer("w", payload)
    assert float(quantized.step) == pytest.approx(float(payload.square().mean().sqrt()), rel=1e-4)


def test_memory_is_kept_by_name_and_comes_back_from_a_checkpoint(tmp_path):
    first, second, *rest = payloads(6, 2000)
    quantizer = Quantizer()
    quantizer("a", first), quantizer("b", second)
    torch.save(quantizer.state_dict(), tmp_path / "state")
    resumed = Quantizer()
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for payload in rest:
        for name in "ba":  # whatever the order
            ours, theirs = quantizer(name, payload), resumed(name, payload)
            assert all(map(torch.equal, ours, theirs))
    assert not np.array_equal(quantizer.residual("a"), quantizer.residual("b"))


@pytest.mark.parametrize("c", [0, -1])
def test_a_step_that_is_not_positive_is_refused(c):
    with pytest.raises(UsageError, match="above 0"):
        Quantizer(c)


def test_symbols_of_more_than_8_bits_are_refused():
    with pytest.raises(UsageError, match="127"):
        Quantizer(largest=200)
