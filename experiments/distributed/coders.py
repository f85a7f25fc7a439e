"""Lossless codes of integers: what a quantized gradient takes on the wire."""

import heapq
import struct
import zlib
from abc import ABC, abstractmethod

import numpy as np


class Coder(ABC):
    """Turns an array of integers into bytes, and back."""

    @abstractmethod
    def encode(self, symbols: np.ndarray) -> bytes:
        """Bytes that stand for integers ``(n,)``; all that :meth:`decode` needs, but for n and their type."""

    @abstractmethod
    def decode(self, code: bytes, count: int, dtype: np.dtype) -> np.ndarray:
        """The ``count`` integers that were encoded."""


class Zlib(Coder):
    """DEFLATE of the standard library: repeated sequences, then Huffman codes.

    The only one here that goes below one bit per symbol, for very coarse steps (c > 2), and that finds repetitions; at
    level 9 some 80 times as slow as :class:`ZlibHuffman` on normal numbers at c = 1.

    Args:
        level: 0 … 9; 9 looks longest for repetitions.
    """

    def __init__(self, level: int = 9) -> None:
        self.level = level

    def encode(self, symbols: np.ndarray) -> bytes:
        """The compressed bytes of the array."""
        return zlib.compress(symbols.tobytes(), self.level)

    def decode(self, code: bytes, count: int, dtype: np.dtype) -> np.ndarray:
        """The array."""
        return np.frombuffer(zlib.decompress(code), dtype)


class ZlibHuffman(Zlib):
    """DEFLATE that looks for no repetitions: Huffman codes only. Fast, near-ideal for steps of c ≤ 1."""

    def encode(self, symbols: np.ndarray) -> bytes:
        """The compressed bytes of the array."""
        compressor = zlib.compressobj(self.level, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
        return compressor.compress(symbols.tobytes()) + compressor.flush()


class Huffman(Coder):
    """Canonical Huffman code (Huffman, 1952) of single symbols, its table included: entropy ≤ bits < entropy + 1.

    The table holds each symbol that occurs and the length of its codeword. Codewords of the sorted table follow from
    the lengths alone: left-aligned, each is the one before plus 2^(width − length).
    """

    _HEADER = struct.Struct("<I")  # number of different symbols

    def encode(self, symbols: np.ndarray) -> bytes:
        """Table, then the codewords without gaps."""
        values, places, counts = np.unique(symbols, return_inverse=True, return_counts=True)
        lengths = codeword_lengths(counts)
        order = np.argsort(lengths, kind="stable")
        values, lengths = values[order], lengths[order]
        ranks = np.argsort(order)[places]
        width = int(lengths[-1])
        codewords = _left_aligned(lengths)[:, None] >> np.arange(width - 1, -1, -1, dtype=np.uint64) & np.uint64(1)
        used = np.arange(width) < lengths[:, None]
        bits = codewords.astype(bool)[ranks][used[ranks]]  # rows of the table, one per symbol, read in order
        table = self._HEADER.pack(len(values)) + values.tobytes() + lengths.tobytes()
        return table + np.packbits(bits).tobytes()

    def decode(self, code: bytes, count: int, dtype: np.dtype) -> np.ndarray:
        """Decode at every bit position as if a codeword began there; then see where codewords do begin.

        The k-th symbol begins 2ⁱ symbols after the (k − 2ⁱ)-th: the table of jumps is doubled until all are found.
        """
        (kinds,) = self._HEADER.unpack_from(code)
        begin = self._HEADER.size
        values = np.frombuffer(code, dtype, kinds, begin)
        lengths = np.frombuffer(code, np.uint8, kinds, begin + values.nbytes)
        if kinds == 1:
            return np.full(count, values[0])
        windows = _windows(np.frombuffer(code, np.uint8, offset=begin + values.nbytes + kinds), int(lengths[-1]))
        ranks = np.searchsorted(_left_aligned(lengths), windows, side="right") - 1
        jumps = np.minimum(np.arange(len(ranks)) + lengths[ranks], len(ranks) - 1)
        starts = np.zeros(1, np.int64)
        while len(starts) < count:
            starts = np.concatenate([starts, jumps[starts]])
            jumps = jumps[jumps]
        return values[ranks[starts[:count]]]


def codeword_lengths(counts: np.ndarray) -> np.ndarray:
    """Huffman's algorithm: occurrences of m ≥ 1 symbols → lengths of their codewords in bits, uint8 ``(m,)``.

    A symbol that is alone needs no bits.
    """
    lengths = np.zeros(len(counts), np.uint8)
    heap = [(int(count), i, [i]) for i, count in enumerate(counts)]
    heapq.heapify(heap)
    for number in range(len(counts), 2 * len(counts) - 1):
        (some, _, left), (others, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (some + others, number, left + right))
    return lengths


def _left_aligned(lengths: np.ndarray) -> np.ndarray:
    """Canonical codewords of ascending lengths, shifted to the width of the longest."""
    sizes = np.uint64(1) << (lengths[-1] - lengths).astype(np.uint64)
    return np.cumsum(sizes, dtype=np.uint64) - sizes


def _windows(code: np.ndarray, width: int) -> np.ndarray:
    """The ``width`` (at most 57) bits that begin at each bit of the code, zeros after its end."""
    padded = np.concatenate([code, np.zeros(8, np.uint8)])
    words = np.zeros(len(code), np.uint64)
    for i in range(8):
        words = words << np.uint64(8) | padded[i : i + len(code)]
    shifted = words[:, None] << np.arange(8, dtype=np.uint64)
    return (shifted >> np.uint64(64 - width)).ravel()
