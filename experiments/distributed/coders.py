"""Lossless codes of integers: what a quantized tensor takes on the wire."""

import struct
import zlib
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from typing_extensions import override


class Coder(ABC):
    """Turns an array of integers into bytes, and back."""

    @abstractmethod
    def encode(self, symbols: np.ndarray) -> bytes:
        """Bytes that stand for integers ``(n,)``; all that :meth:`decode` needs, but for their type."""

    @abstractmethod
    def decode(self, code: bytes, dtype: np.dtype) -> np.ndarray:
        """The integers that were encoded."""


class Zlib(Coder):
    """DEFLATE of the standard library: repeated sequences, then Huffman codes.

    The only one here that goes below one bit per symbol, for very coarse steps (c > 2), and that finds repetitions; at
    level 9 some 80 times as slow as :class:`ZlibHuffman` on normal numbers at c = 1.

    Args:
        level: 0 … 9; 9 looks longest for repetitions.
    """

    def __init__(self, level: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] = 9) -> None:
        self.level = level

    @override
    def encode(self, symbols: np.ndarray) -> bytes:
        return zlib.compress(symbols.tobytes(), self.level)

    @override
    def decode(self, code: bytes, dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(zlib.decompress(code), dtype)


class ZlibHuffman(Zlib):
    """DEFLATE that looks for no repetitions: Huffman codes only. Fast, near-ideal for steps of c ≤ 1."""

    @override
    def encode(self, symbols: np.ndarray) -> bytes:
        compressor = zlib.compressobj(self.level, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
        return compressor.compress(symbols.tobytes()) + compressor.flush()


class FixedLength(Coder):
    """As many bits for every symbol as their range needs: 1 for two kinds (two signs), 8 for all of int8."""

    _HEADER = struct.Struct("<iIIB")  # lowest symbol, distance of neighbours, symbols, bits of each

    @override
    def encode(self, symbols: np.ndarray) -> bytes:
        lowest = int(symbols.min())
        above = symbols.astype(np.int64) - lowest
        distance = max(int(np.gcd.reduce(above)), 1)  # 2 of signs, between which nothing is
        levels = above // distance
        bits = max(int(levels.max()).bit_length(), 1)
        digits = (levels[:, None] >> np.arange(bits)) & 1
        return self._HEADER.pack(lowest, distance, len(symbols), bits) + np.packbits(digits.astype(np.uint8)).tobytes()

    @override
    def decode(self, code: bytes, dtype: np.dtype) -> np.ndarray:
        lowest, distance, count, bits = self._HEADER.unpack_from(code)
        packed = np.frombuffer(code, np.uint8, offset=self._HEADER.size)
        digits = np.unpackbits(packed, count=count * bits).reshape(count, bits)
        return (lowest + distance * (digits @ (1 << np.arange(bits)))).astype(dtype)
