"""Quantization with a step that follows the payload, and error feedback."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from losses.errors import UsageError
from ranges import PositiveFloat

LARGEST = 127
"""Of the symbols, where they are clipped to 8 bits."""


class Quantized(NamedTuple):
    """A tensor ``(n,)`` as integers."""

    symbols: Tensor  # int8, or int32 if nothing is clipped
    step: Tensor  # one float32
    values: Tensor  # step · symbols, what the receivers get
    wanted: Tensor  # what was to be sent: payload plus what earlier exchanges left over
    rms: Tensor  # of the payload
    largest: float  # symbol that there may be


@dataclass
class _Memory:
    """What is kept of one parameter."""

    residual: Tensor  # what was not sent yet
    average: Tensor  # exponential moving average of the RMS, from 0
    updates: int = 0  # that the average has had


class Quantizer(ABC):
    """Mid-tread quantizer with error feedback: one per worker, its memory keyed by the parameter's name.

        v = payload + e,   s = c · r_ref,   q = clip(round(v / s), ±127),   v̂ = s · q,   e ← v − v̂

    Nothing is lost but delayed: Σ v̂ + e = Σ payload, and abs(e) ≤ s / 2 where nothing is clipped. A subclass says what
    the reference r_ref is. The algorithm is our reading of "more bits when the RMS of the gradient is larger" (accounts
    of A. Øland's thesis, CMU-CS-24-147; its text was not available).

    Args:
        c: step over reference.
        clip: clip the symbols to ±127.

    Attributes:
        calibrating: whether references still follow the payload; to be set by who trains: during epoch 0.

    Raises:
        UsageError: c is not positive.
    """

    DECAY = 0.99

    def __init__(self, c: PositiveFloat = 1.0, clip: bool = True) -> None:
        if c <= 0:
            raise UsageError(f"c is the quantizer's step over what it refers to: above 0, not {c:g}.")
        self.c, self.clip = c, clip
        self.calibrating = True
        self._memories: dict[str, _Memory] = {}

    def __call__(self, name: str, payload: Tensor) -> Quantized:
        """Quantize what is to be sent for a parameter, ``(n,)``, and remember what is left over."""
        if name not in self._memories:
            self._memories[name] = _Memory(torch.zeros_like(payload), payload.new_zeros(()))
        memory = self._memories[name]
        rms = torch.linalg.vector_norm(payload) / len(payload) ** 0.5
        if self.calibrating or not memory.updates:
            memory.average = torch.lerp(rms, memory.average, self.DECAY)
            memory.updates += 1
        quantized = self._rounded(payload + memory.residual, self.c * self._reference(memory, payload, rms), rms)
        memory.residual = quantized.wanted - quantized.values
        return quantized

    def _rounded(self, wanted: Tensor, step: Tensor, rms: Tensor) -> Quantized:
        return _mid_tread(wanted, step, rms, LARGEST if self.clip else math.inf)

    @abstractmethod
    def _reference(self, memory: _Memory, payload: Tensor, rms: Tensor) -> Tensor:
        """What the step is c times of."""

    def _calibrated(self, memory: _Memory) -> Tensor:
        """The payload's average RMS in epoch 0."""
        return memory.average / (1 - self.DECAY**memory.updates)

    @property
    def dtype(self) -> torch.dtype:
        """Of the symbols."""
        return torch.int8 if self.clip else torch.int32

    def residual(self, name: str) -> Tensor:
        """What of a parameter was not sent yet, ``(n,)``."""
        return self._memories[name].residual

    def state_dict(self) -> dict[str, Any]:
        """Residuals and references of all parameters."""
        return {name: dict(vars(memory)) for name, memory in self._memories.items()}

    def load_state_dict(self, state_dict: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Go on with a checkpoint's residuals and references."""
        self._memories = {
            name: _Memory(kept["residual"].to(device), kept["average"].to(device), kept["updates"])
            for name, kept in state_dict.items()
        }


def _mid_tread(wanted: Tensor, step: Tensor, rms: Tensor, largest: float) -> Quantized:
    """Round to multiples of the step, 0 among them, up to ``largest`` of them."""
    scaled = (wanted * torch.where(step > 0, 1 / step, 0)).round_()  # 0 before the first payload that is not 0
    symbols = scaled.clamp_(-largest, largest).to(torch.int8 if largest <= LARGEST else torch.int32)
    return Quantized(symbols, step, scaled.mul_(step), wanted, rms, largest)


class FixedRef(Quantizer):
    """The step follows the payload's RMS in epoch 0, then stays: twice the payload takes one bit more.

    The average RMS is exponential, 0.99, its start corrected for.
    """

    @override
    def _reference(self, memory: _Memory, payload: Tensor, rms: Tensor) -> Tensor:
        reference = self._calibrated(memory)
        return torch.where(reference > 0, reference, rms)  # a payload that was 0 all through calibration


class Relative(Quantizer):
    """The step follows the RMS of the payload itself, so that the bits stay about the same."""

    @override
    def _reference(self, memory: _Memory, payload: Tensor, rms: Tensor) -> Tensor:
        return rms


class Range(Quantizer):
    """The step divides the payload's range: 255 symbols from −max to max at c = 1, 127 at c = 2.

    An entropy coder then takes what :func:`~experiments.distributed.entropy.h8` measures: 8 bits for a uniform payload,
    fewer the more its range outgrows its bulk. With weights as payload this is the saving that the thesis derives from
    their falling entropy, as we read it.
    """

    @override
    def _reference(self, memory: _Memory, payload: Tensor, rms: Tensor) -> Tensor:
        return payload.abs().max() / LARGEST


class ExplicitBits(Quantizer):
    """A number of bits for each tensor and exchange, b = clip(⌈log₂(2·k·RMS / s₀)⌉, 1, 8), and one step s₀ for all.

    s₀ is c times the mean over the tensors of their RMS in epoch 0; symbols are clipped to ±(2^(b − 1) − 1), and what
    is clipped stays in the error feedback. With one bit, the sign and the mean of abs(v) are sent. Meant for the coder
    :class:`~experiments.distributed.coders.FixedLength`.

    Args:
        c: step s₀ over the mean RMS.
        k: multiple of its RMS up to which a payload is not clipped.
    """

    MOST = 8

    def __init__(self, c: PositiveFloat = 1.0, k: PositiveFloat = 4.0) -> None:
        super().__init__(c)
        self.k = k

    @override
    def _reference(self, memory: _Memory, payload: Tensor, rms: Tensor) -> Tensor:
        return torch.stack([self._calibrated(other) for other in self._memories.values() if other.updates]).mean()

    @override
    def _rounded(self, wanted: Tensor, step: Tensor, rms: Tensor) -> Quantized:
        bits = self.bits(float(rms), float(step))
        if bits > 1:
            return _mid_tread(wanted, step, rms, 2 ** (bits - 1) - 1)
        signs, size = torch.where(wanted < 0, -1, 1).to(torch.int8), wanted.abs().mean()
        return Quantized(signs, size, size * signs, wanted, rms, 1)

    def bits(self, rms: float, step: float) -> int:
        """How many a payload of that RMS gets."""
        ratio = 2 * self.k * rms / step if step else 0
        return min(max(math.ceil(math.log2(ratio)), 1), self.MOST) if ratio else 1
