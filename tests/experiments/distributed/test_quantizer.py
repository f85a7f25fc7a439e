"""Quantizer with error feedback."""

import pytest
import torch
from reference.huffman import huffman_bits

from experiments.distributed.entropy import shannon
from experiments.distributed.quantizer import Quantizer


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


def test_the_step_follows_the_average_until_calibration_ends_or_the_payload_itself():
    fixed, relative, average = Quantizer(2.5), Quantizer(2.5, "relative"), 0.0
    for t, payload in enumerate(payloads(30, 2000), start=1):
        payload = payload * t
        rms = float(payload.square().mean().sqrt())
        average = 0.99 * average + 0.01 * rms
        assert float(fixed("w", payload).step) == pytest.approx(2.5 * average / (1 - 0.99**t), rel=1e-4)
        assert float(relative("w", payload).step) == pytest.approx(2.5 * rms, rel=1e-4)
    fixed.calibrating = False
    assert float(fixed("w", 100 * payload).step) == pytest.approx(2.5 * average / (1 - 0.99**30), rel=1e-4)


# With error feedback: step / σ → entropy, Huffman.
@pytest.mark.parametrize(
    ("c", "entropy", "huffman"), [(0.5, 3.08, 3.13), (1, 2.16, 2.26), (2, 1.41, 1.60), (4, 0.92, 1.20)]
)
def test_bits_of_a_normal_payload_with_error_feedback(c, entropy, huffman):
    quantizer = Quantizer(c)
    symbols = [quantizer("w", payload).symbols for payload in payloads(30, 100_000)][-1]
    assert shannon(symbols) == pytest.approx(entropy, abs=0.03)
    assert huffman_bits(symbols) == pytest.approx(huffman, abs=0.03)


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
    assert not torch.equal(quantizer.residual("a"), quantizer.residual("b"))
