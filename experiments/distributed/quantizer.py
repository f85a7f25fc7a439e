"""Quantization with a step that follows the payload's root mean square, and error feedback."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from losses.errors import UsageError

Rule = Literal["fixed_ref", "relative"]

LARGEST = 127
"""Of the symbols, where they are clipped to 8 bits."""


class Quantized(NamedTuple):
    """A tensor ``(n,)`` as integers."""

    symbols: Tensor  # int8, or int32 if nothing is clipped
    step: Tensor  # one float32
    values: Tensor  # step · symbols, what the receivers get
    wanted: Tensor  # what was to be sent: payload plus what earlier steps left over
    rms: Tensor  # of the payload


@dataclass
class _Memory:
    """What is kept of one parameter."""

    residual: Tensor  # what was not sent yet
    average: Tensor  # exponential moving average of the RMS, from 0
    updates: int = 0  # that the average has had


class Quantizer:
    """Mid-tread quantizer with error feedback: one per worker, its memory keyed by the parameter's name.

        v = payload + e,   s = c · r_ref,   q = clip(round(v / s), ±127),   v̂ = s · q,   e ← v − v̂

    Nothing is lost but delayed: Σ v̂ + e = Σ payload, and abs(e) ≤ s / 2 where nothing is clipped. The algorithm is our
    reading of "more bits when the RMS of the gradient is larger" (accounts of A. Øland's thesis, CMU-CS-24-147; its
    text was not available).

    Args:
        c: step over reference RMS.
        rule: ``fixed_ref``: the reference is the average RMS (exponential, 0.99, its start corrected for) while
            ``calibrating``, then frozen, so that twice the gradient takes one bit more; ``relative``: the RMS of the
            payload itself, so that the bits stay about the same.
        clip: clip the symbols to ±127.

    Attributes:
        calibrating: whether ``fixed_ref`` still follows the payload; to be set by who trains: during epoch 0.

    Raises:
        UsageError: c is not positive.
    """

    DECAY = 0.99

    def __init__(self, c: float = 1.0, rule: Rule = "fixed_ref", clip: bool = True) -> None:
        if c <= 0:
            raise UsageError(f"c is the quantizer's step over the RMS of the gradient: above 0, not {c:g}.")
        self.c, self.rule, self.clip = c, rule, clip
        self.calibrating = True
        self._memories: dict[str, _Memory] = {}

    def __call__(self, name: str, payload: Tensor) -> Quantized:
        """Quantize what is to be sent for a parameter, ``(n,)``, and remember what is left over."""
        if name not in self._memories:
            self._memories[name] = _Memory(torch.zeros_like(payload), payload.new_zeros(()))
        memory = self._memories[name]
        rms = torch.linalg.vector_norm(payload) / len(payload) ** 0.5
        step = self.c * self._reference(memory, rms)
        wanted = payload + memory.residual
        scaled = (wanted * torch.where(step > 0, 1 / step, 0)).round_()  # 0 before the first gradient that is not 0
        if self.clip:
            scaled.clamp_(-LARGEST, LARGEST)
        symbols = scaled.to(torch.int8 if self.clip else torch.int32)
        quantized = Quantized(symbols, step, scaled.mul_(step), wanted, rms)
        memory.residual = wanted - quantized.values
        return quantized

    def _reference(self, memory: _Memory, rms: Tensor) -> Tensor:
        if self.rule == "relative":
            return rms
        if self.calibrating or not memory.updates:
            memory.average = torch.lerp(rms, memory.average, self.DECAY)
            memory.updates += 1
        reference = memory.average / (1 - self.DECAY**memory.updates)
        return torch.where(reference > 0, reference, rms)  # a gradient that was 0 all through calibration

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
