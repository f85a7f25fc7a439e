"""Gradients that are quantized by an RMS-ruled step, entropy-coded, and averaged."""

import math
import struct
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from typing_extensions import override

from experiments.distributed.coders import Coder, ZlibHuffman
from experiments.distributed.entropy import shannon
from experiments.distributed.hooks import CommunicationHook
from experiments.distributed.quantizer import Quantized, Quantizer, Rule
from losses.errors import UsageError

SMALLEST = 1024
"""Tensors with fewer numbers go uncompressed: their coders' tables would dominate."""

_HEADER = struct.Struct("<fI")  # step, bytes of the code

_NUMPY: dict[torch.dtype, np.dtype] = {torch.int8: np.dtype(np.int8), torch.int32: np.dtype(np.int32)}


class EntropyCoded(CommunicationHook):
    """Every tensor is quantized with error feedback and entropy-coded; tensors under 1024 numbers go as float32.

    What travels is, per tensor, 8 bytes (step and length) and the code, its tables included. In mode ``counting``
    the code is made and measured, but the dequantized gradients are all-reduced: this measures volume, not time on a
    network. In mode ``true`` the code is all that travels: all-gathered, padded to the longest message, and decoded;
    padding and the exchange of lengths are counted. Both give the same average up to the order of a sum.

    Our reading of the entropy-coded communication of A. Øland's thesis (CMU-CS-24-147), whose text was not available:
    quantizer, coder and what is sent are unknown.

    Args:
        c: step of the quantizer over the RMS of the gradient.
        rule: which RMS: ``fixed_ref``, that of epoch 0, or ``relative``, that of every step (:class:`Quantizer`).
        coder: entropy coder.
        mode: ``counting`` or ``true``.
        clip: clip to 8 bits; what is clipped stays in the error feedback.
        code_every: in mode ``counting``, code every so many steps and take the steps between for as long; coding
            copies the gradients to the CPU, which on a GPU should not happen at every step.

    Raises:
        UsageError: c is not positive, or steps are to be left out where the code is what travels.
    """

    def __init__(
        self,
        c: float = 1.0,
        rule: Rule = "fixed_ref",
        coder: Coder = ZlibHuffman(),
        mode: Literal["counting", "true"] = "counting",
        clip: bool = True,
        code_every: int = 1,
    ) -> None:
        super().__init__()
        if code_every < 1 or (mode == "true" and code_every > 1):
            raise UsageError(
                f"code_every must be 1 in mode true, where the code is what travels, and at least 1, not {code_every}."
            )
        self.quantizer = Quantizer(c, rule, 127 if clip else None)
        self.coder, self.code_every = coder, code_every
        self._send = {"counting": self._all_reduce, "true": self._all_gather}[mode]
        self._sizes: dict[str, int] = {}
        self._measured: dict[str, int] = {}
        self._sent = 0

    @override
    def exchange(self, bucket: dist.GradBucket) -> Future[Tensor]:
        return self._send(bucket)

    @override
    def message_bytes(self, bucket: dist.GradBucket) -> int:
        """Of the code, with headers, and what goes uncoded."""
        return self._sent

    # -- the two modes ------------------------------------------------------------------------

    def _all_reduce(self, bucket: dist.GradBucket) -> Future[Tensor]:
        self._sent = 0
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            flat, name = gradient.view(-1), self._names[parameter]
            if len(flat) < SMALLEST:
                self._sent += flat.nbytes
                continue
            quantized = self._quantize(name, flat)
            if self.steps % self.code_every == 0 or name not in self._sizes:
                self._sizes[name] = len(self._encode(quantized))
            self._sent += _HEADER.size + self._sizes[name]
            self._measure(name, quantized)
            flat.copy_(quantized.values)
        buffer = bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(buffer, async_op=True).get_future().then(lambda done: done.value()[0])

    def _all_gather(self, bucket: dist.GradBucket) -> Future[Tensor]:
        message = bytearray()
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            flat, name = gradient.view(-1), self._names[parameter]
            if len(flat) < SMALLEST:
                message += flat.cpu().numpy().tobytes()
                continue
            quantized = self._quantize(name, flat)
            code = self._encode(quantized)
            self._sizes[name] = len(code)
            message += _HEADER.pack(quantized.step.item(), len(code)) + code
            self._measure(name, quantized)
        buffer = bucket.buffer().zero_()
        for theirs in self._gather(message, buffer.device):
            self._add(theirs, bucket)
        averaged: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else [])
        averaged.set_result(buffer.div_(dist.get_world_size()))
        return averaged

    def _gather(self, message: bytearray, device: torch.device) -> list[bytes]:
        """The messages of all processes, in their order."""
        length = torch.tensor(len(message), device=device)
        lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
        dist.all_gather(lengths, length)
        longest = int(max(lengths))
        self._sent = longest + length.nbytes
        padded = torch.frombuffer(message.ljust(longest, b"\0"), dtype=torch.uint8).to(device)
        messages = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(messages, padded)
        return [text.cpu().numpy().tobytes()[: int(n)] for text, n in zip(messages, lengths, strict=True)]

    def _add(self, message: bytes, bucket: dist.GradBucket) -> None:
        """Decode a process' message and add its gradients to the bucket's."""
        place = 0
        for gradient in bucket.gradients():
            flat = gradient.view(-1)
            if len(flat) < SMALLEST:
                values, place = np.frombuffer(message, np.float32, len(flat), place), place + flat.nbytes
                flat += torch.tensor(values).to(flat.device)
                continue
            step, length = _HEADER.unpack_from(message, place)
            place += _HEADER.size
            symbols = self.coder.decode(message[place : place + length], _NUMPY[self.quantizer.dtype])
            flat.add_(torch.tensor(symbols).to(flat.device), alpha=step)
            place += length

    # -- one tensor ---------------------------------------------------------------------------

    def _quantize(self, name: str, payload: Tensor) -> Quantized:
        self.quantizer.calibrating = self.calibrating
        return self.quantizer(name, payload.float())

    def _encode(self, quantized: Quantized) -> bytes:
        return self.coder.encode(quantized.symbols.cpu().numpy())

    def _measure(self, name: str, quantized: Quantized) -> None:
        """Metrics of a tensor; under ``coded`` their means over all coded numbers so far."""
        if not self.measuring:
            return
        symbols, largest = quantized.symbols, self.quantizer.largest or math.inf
        rms = quantized.rms.clamp(min=torch.finfo(torch.float32).tiny)
        metrics = {
            "bits": 8 * (_HEADER.size + self._sizes[name]) / len(symbols),
            "shannon_bits": shannon(symbols),
            "zeros": float((symbols == 0).float().mean()),
            "clipped": float((quantized.wanted.abs() > (largest + 0.5) * quantized.step).float().mean()),
            "payload_rms": float(quantized.rms),
            "residual_over_payload": float(self.quantizer.residual(name).square().mean().sqrt() / rms),
        }
        self._measured = {} if not self.metrics else self._measured
        self._measured[name] = len(symbols)
        self.metrics |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        for metric in metrics:
            values = [self.metrics[f"{coded}/{metric}"] for coded in self._measured]
            self.metrics[f"coded/{metric}"] = float(np.average(values, weights=[*self._measured.values()]))

    # -- checkpoints --------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        """Residuals, references and counts."""
        return super().state_dict() | {"quantizer": self.quantizer.state_dict(), "sizes": dict(self._sizes)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any], device: torch.device | str = "cpu") -> None:
        super().load_state_dict(state_dict, device)
        self.quantizer.load_state_dict(state_dict["quantizer"], device)
        self._sizes = dict(state_dict["sizes"])
