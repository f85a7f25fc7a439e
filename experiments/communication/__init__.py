"""Compressed communication: hooks that average the gradients of several processes, and what they send."""

from experiments.communication.callback import CommunicationLog
from experiments.communication.coders import Coder, Huffman, Zlib, ZlibHuffman
from experiments.communication.entropy import h8, shannon
from experiments.communication.entropy_coded import EntropyCoded
from experiments.communication.errors import CommunicationError
from experiments.communication.hooks import CommunicationHook, HalfPrecision, PowerSGD, Uncompressed
from experiments.communication.quantizer import Quantizer
from experiments.communication.strategy import CompressedDDP

__all__ = [
    "Coder",
    "CommunicationError",
    "CommunicationHook",
    "CommunicationLog",
    "CompressedDDP",
    "EntropyCoded",
    "HalfPrecision",
    "Huffman",
    "PowerSGD",
    "Quantizer",
    "Uncompressed",
    "Zlib",
    "ZlibHuffman",
    "h8",
    "shannon",
]
