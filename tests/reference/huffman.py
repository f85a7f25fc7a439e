"""The shortest code of single symbols (Huffman, 1952)."""

import heapq


def huffman_bits(symbols):
    """Bits per symbol, without a table: the two rarest kinds are merged, which costs each of theirs a bit; again."""
    counts = symbols.unique(return_counts=True)[1].tolist()
    heapq.heapify(counts)
    bits = 0
    while len(counts) > 1:
        both = heapq.heappop(counts) + heapq.heappop(counts)
        heapq.heappush(counts, both)
        bits += both
    return bits / len(symbols)
