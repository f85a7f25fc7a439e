"""Entropy coders: nothing is lost, and no more bits than theory says."""

import numpy as np
import pytest
import torch
from reference.huffman import huffman_bits

from experiments.distributed.coders import FixedLength, Zlib, ZlibHuffman
from experiments.distributed.entropy import shannon


def symbols_of(step, count=400_000):
    """A normal payload of std 1, quantized."""
    payload = torch.randn(count, generator=torch.Generator().manual_seed(0))
    return (payload / step).round().clamp(-127, 127).to(torch.int8)


def bits(coder, symbols):
    return 8 * len(coder.encode(symbols.numpy())) / len(symbols)


@pytest.mark.parametrize("coder", [Zlib(), ZlibHuffman(), FixedLength()], ids=["zlib", "zlib_huffman", "fixed_length"])
@pytest.mark.parametrize(
    "symbols",
    [
        symbols_of(0.02, 5000).numpy(),
        np.zeros(1025, np.int8),
        np.array([-(2**31), 2**31 - 1, 0, 70_000] * 300, np.int32),
    ],
    ids=["normal", "constant", "int32"],
)
def test_round_trip_is_exact(coder, symbols):
    decoded = coder.decode(coder.encode(symbols), symbols.dtype)
    assert decoded.dtype == symbols.dtype
    np.testing.assert_array_equal(decoded, symbols)


# Section 1 of the method: bits per symbol of 400,000 normal numbers at step / σ: entropy, Huffman, zlib.
@pytest.mark.parametrize(
    ("step", "entropy", "huffman", "deflated"),
    [
        (0.25, 4.05, 4.10, 4.63),
        (0.45, 3.21, 3.26, None),  # 3.74; between the ends zlib searches for half a second
        (0.5, 3.06, 3.12, None),  # 3.58
        (1, 2.11, 2.22, None),  # 2.53
        (2, 1.24, 1.48, None),  # 1.57
        (4, 0.31, 1.05, 0.46),
    ],
)
def test_bits_of_a_normal_payload(step, entropy, huffman, deflated):
    symbols = symbols_of(step)
    assert shannon(symbols) == pytest.approx(entropy, abs=0.02)
    assert huffman_bits(symbols) == pytest.approx(huffman, abs=0.02)
    assert bits(ZlibHuffman(), symbols) == pytest.approx(huffman, abs=0.03)
    assert deflated is None or bits(Zlib(), symbols) == pytest.approx(deflated, abs=0.03)


@pytest.mark.parametrize(
    ("values", "bits"), [([-1, 1], 1), ([-1, 0, 1], 2), ([-3, 3, -2], 3), ([-127, 0, 1, 127], 8), ([5], 1)]
)
def test_fixed_length_takes_as_many_bits_as_the_range_needs(values, bits):
    symbols = np.array(values * 1001, np.int8)
    code = FixedLength().encode(symbols)
    assert len(code) == FixedLength._HEADER.size + -(-bits * len(symbols) // 8)
    np.testing.assert_array_equal(FixedLength().decode(code, symbols.dtype), symbols)
