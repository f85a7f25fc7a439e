"""Quantizer with error feedback."""

import pytest
import torch
from reference.huffman import huffman_bits

from experiments.distributed.entropy import shannon
from experiments.distributed.quantizer import ExplicitBits, FixedRef, Range, Relative


def payloads(steps, count=400_000, std=0.01):
    generator = torch.Generator().manual_seed(0)
    return [std * torch.randn(count, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("rule", [FixedRef, Relative, Range])
@pytest.mark.parametrize("c", [0.3, 1, 4])
def test_error_feedback_loses_nothing(rule, c):
    if rule is Range:
        c = 1 + c  # finer is clipped
    quantizer, sent, given = rule(c), 0, 0
    for payload in payloads(20, 2000):
        quantized = quantizer("w", payload)
        sent, given = sent + quantized.values.double(), given + payload.double()
        assert int(quantized.symbols.abs().max()) < 127  # nothing is clipped: the error is at most half a step
        assert float(quantizer.residual("w").abs().max()) <= float(quantized.step) / 2 * (1 + 1e-5)
    torch.testing.assert_close(sent + quantizer.residual("w"), given, atol=1e-6, rtol=0)


def test_what_is_clipped_stays_in_the_residual():
    quantizer = FixedRef(c=0.001)
    payload = payloads(1, 2000)[0]
    quantized = quantizer("w", payload)
    assert quantized.symbols.dtype == torch.int8
    assert int(quantized.symbols.abs().max()) == 127
    torch.testing.assert_close(quantized.values + quantizer.residual("w"), payload)
    assert float(quantizer.residual("w").abs().max()) > float(quantized.step)


def test_the_step_follows_the_average_until_calibration_ends_or_the_payload_itself():
    fixed, relative, average = FixedRef(2.5), Relative(2.5), 0.0
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
    quantizer = FixedRef(c)
    symbols = [quantizer("w", payload).symbols for payload in payloads(30, 100_000)][-1]
    assert shannon(symbols) == pytest.approx(entropy, abs=0.03)
    assert huffman_bits(symbols) == pytest.approx(huffman, abs=0.03)


def test_zeros_are_sent_as_zeros_and_a_later_gradient_gets_through():
    quantizer = FixedRef()
    assert not quantizer("w", torch.zeros(2000)).symbols.any()
    quantizer.calibrating = False
    payload = payloads(1, 2000)[0]
    quantized = quantizer("w", payload)
    assert float(quantized.step) == pytest.approx(float(payload.square().mean().sqrt()), rel=1e-4)


def test_memory_is_kept_by_name_and_comes_back_from_a_checkpoint(tmp_path):
    first, second, *rest = payloads(6, 2000)
    quantizer = FixedRef()
    quantizer("a", first), quantizer("b", second)
    torch.save(quantizer.state_dict(), tmp_path / "state")
    resumed = FixedRef()
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for payload in rest:
        for name in "ba":  # whatever the order
            ours, theirs = quantizer(name, payload), resumed(name, payload)
            assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(quantizer.residual("a"), quantizer.residual("b"))


def test_a_share_of_the_range_takes_the_bits_of_the_weights_entropy():
    uniform = 2 * torch.rand(400_000, generator=torch.Generator().manual_seed(0)) - 1
    for c, bits in ((1, 8), (8, 5)):  # 255 and 32.9 levels; the outer two are half as wide
        symbols = Range(c)("w", 0.3 * uniform).symbols
        assert shannon(symbols) == pytest.approx(bits, abs=0.05)
    outlier = torch.cat([uniform, torch.tensor([50.0])])
    assert shannon(Range()("w", outlier).symbols) < 3
    assert float(Range()("w", outlier).values[-1]) == pytest.approx(50)


@pytest.mark.parametrize(
    ("times", "bits"), [(1, 3), (1.01, 4), (2, 4), (0.5, 2), (0.25, 1), (0.01, 1), (30, 8), (1000, 8)]
)
def test_explicit_bits_follow_the_rms_of_the_payload_against_the_mean_of_the_first_epoch(times, bits):
    quantizer = ExplicitBits(k=3.99)  # ⌈log2(2 · 3.99)⌉ is 3
    payload = torch.full((2000,), 0.01)
    quantizer("a", 0.5 * payload), quantizer("b", 1.5 * payload)
    quantizer.calibrating = False
    quantized = quantizer("b", times * payload)
    assert quantized.largest == max(2 ** (bits - 1) - 1, 1)
    assert bits == 1 or float(quantized.step) == pytest.approx(0.01, rel=1e-4)


def test_one_bit_sends_signs_and_their_mean_size_and_keeps_the_rest():
    quantizer, payload = ExplicitBits(), payloads(1, 2000)[0]
    quantizer("w", payload)
    quantizer.calibrating = False
    left = quantizer.residual("w").clone()
    quantized = quantizer("w", 0.1 * payload)
    wanted = 0.1 * payload + left
    assert quantized.symbols.unique().tolist() == [-1, 1]
    torch.testing.assert_close(quantized.values, wanted.sign() * wanted.abs().mean())
    torch.testing.assert_close(quantizer.residual("w"), wanted - quantized.values)


def test_what_explicit_bits_clip_is_sent_later():
    quantizer, sent, given = ExplicitBits(k=0.5), 0, 0
    for payload in payloads(50, 2000):
        quantized = quantizer("w", payload)
        sent, given = sent + quantized.values.double(), given + payload.double()
    torch.testing.assert_close(sent + quantizer.residual("w"), given, atol=1e-6, rtol=0)
