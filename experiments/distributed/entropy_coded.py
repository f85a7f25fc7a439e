"""Gradients, or another payload, that are quantized, entropy-coded, and averaged."""

import struct
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from typing_extensions import override

from experiments.distributed.coders import Coder, ZlibHuffman
from experiments.distributed.entropy import shannon
from experiments.distributed.hooks import CommunicationHook
from experiments.distributed.quantizer import FixedRef, Quantized, Quantizer
from losses.errors import UsageError
from ranges import PositiveInt

SMALLEST = 1024
"""Tensors with fewer numbers go uncompressed: their coders' tables would dominate."""

CODED_ON_CUDA = 20
"""There, one exchange in so many is coded, unless told otherwise: coding copies all numbers to the CPU."""

_HEADER = struct.Struct("<fI")  # step, bytes of the code


class EntropyCoded(CommunicationHook):
    """Every tensor is quantized with error feedback and entropy-coded; tensors under 1024 numbers go as float32.

    What travels is, per tensor, 8 bytes (step and length) and the code, its tables included. In mode ``counting``
    the code is made and measured, but the dequantized numbers are all-reduced: this measures volume, not time on a
    network. In mode ``true`` the code is all that travels: all-gathered, padded to the longest message, and decoded;
    padding and the exchange of lengths are counted. Both give the same average up to the order of a sum.

    Our reading of the entropy-coded communication of A. Øland's thesis (CMU-CS-24-147), whose text was not available:
    quantizer, coder and what is sent are unknown.

    Args:
        quantizer: how numbers become integers; by default :class:`FixedRef` with c = 1.
        coder: entropy coder.
        mode: ``counting`` or ``true``.
        code_every: in mode ``counting``, code one exchange in so many and take those between for as long; by default
            all, on CUDA one in 20.

    Raises:
        UsageError: exchanges are to be left out where the code is what travels.
    """

    def __init__(
        self,
        quantizer: Quantizer | None = None,
        coder: Coder = ZlibHuffman(),
        mode: Literal["counting", "true"] = "counting",
        code_every: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if code_every is not None and (code_every < 1 or (mode == "true" and code_every > 1)):
            raise UsageError(
                f"code_every must be 1 in mode true, where the code is what travels, and at least 1, not {code_every}."
            )
        self.quantizer = quantizer or FixedRef()
        self.coder, self.mode, self.code_every = coder, mode, code_every
        self._sizes: dict[str, int] = {}

    @override
    def exchange(self, bucket: dist.GradBucket) -> tuple[Future[Tensor], int]:
        """Sent is the code, with headers, and what goes uncoded."""
        return self._all_gather(bucket) if self.mode == "true" else self._all_reduce(bucket)

    # -- the two modes ------------------------------------------------------------------------

    def _all_reduce(self, bucket: dist.GradBucket) -> tuple[Future[Tensor], int]:
        sent = 0
        for name, payload in self._tensors(bucket):
            if len(payload) < SMALLEST:
                sent += payload.nbytes
            else:
                quantized, _ = self._coded(name, payload)
                payload.copy_(quantized.values)
                sent += _HEADER.size + self._sizes[name]
        return allreduce_hook(None, bucket), sent  # type: ignore[arg-type]  # None: all processes

    def _all_gather(self, bucket: dist.GradBucket) -> tuple[Future[Tensor], int]:
        message = bytearray()
        for name, payload in self._tensors(bucket):
            if len(payload) < SMALLEST:
                message += payload.cpu().numpy().tobytes()
            else:
                quantized, code = self._coded(name, payload)
                message += _HEADER.pack(quantized.step.item(), len(code)) + code
        buffer = bucket.buffer().zero_()
        messages, sent = self._gather(message, buffer.device)
        for theirs in messages:
            self._add(theirs, bucket)
        averaged: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else [])
        averaged.set_result(buffer.div_(dist.get_world_size()))
        return averaged, sent

    @staticmethod
    def _gather(message: bytearray, device: torch.device) -> tuple[list[bytes], int]:
        """The messages of all processes, in their order, and the bytes that each has sent."""
        length = torch.tensor(len(message), device=device)
        lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
        dist.all_gather(lengths, length)
        longest = int(max(lengths))
        padded = torch.frombuffer(message.ljust(longest, b"\0"), dtype=torch.uint8).to(device)
        messages = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(messages, padded)
        texts = [text.cpu().numpy().tobytes()[: int(n)] for text, n in zip(messages, lengths, strict=True)]
        return texts, longest + length.nbytes

    def _add(self, message: bytes, bucket: dist.GradBucket) -> None:
        """Decode a process' message and add its numbers to the bucket's."""
        place, dtype = 0, np.dtype(str(self.quantizer.dtype).removeprefix("torch."))
        for _, payload in self._tensors(bucket):
            if len(payload) < SMALLEST:
                payload += torch.tensor(np.frombuffer(message, np.float32, len(payload), place)).to(payload.device)
                place += payload.nbytes
                continue
            step, length = _HEADER.unpack_from(message, place)
            place += _HEADER.size
            symbols = self.coder.decode(message[place : place + length], dtype)
            payload.add_(torch.tensor(symbols).to(payload.device), alpha=step)
            place += length

    # -- one tensor ---------------------------------------------------------------------------

    def _tensors(self, bucket: dist.GradBucket) -> Iterator[tuple[str, Tensor]]:
        """Names and what is to be sent, ``(n,)``."""
        for parameter, payload in zip(bucket.parameters(), bucket.gradients(), strict=True):
            yield self._names[parameter], payload.view(-1)

    def _coded(self, name: str, payload: Tensor) -> tuple[Quantized, bytes]:
        """A tensor as integers, and their code; empty in an exchange that is not coded."""
        self.quantizer.calibrating = self.calibrating
        quantized, code = self.quantizer(name, payload.float()), b""
        if self.steps % self._coding_interval(payload.device) == 0 or name not in self._sizes:
            code = self.coder.encode(quantized.symbols.cpu().numpy())
            self._sizes[name] = len(code)
        if self.measuring:
            self._measure(name, quantized)
        return quantized, code

    def _coding_interval(self, device: torch.device) -> int:
        """One exchange in so many is coded."""
        default = CODED_ON_CUDA if device.type == "cuda" and self.mode == "counting" else 1
        return self.code_every or default

    def _measure(self, name: str, quantized: Quantized) -> None:
        """Metrics of a tensor; under ``coded`` their means over all coded numbers so far."""
        symbols, residual = quantized.symbols, self.quantizer.residual(name)
        rms = quantized.rms.clamp(min=torch.finfo(torch.float32).tiny)
        largest = (quantized.largest + 0.5) * quantized.step
        metrics = {
            "bits": 8 * (_HEADER.size + self._sizes[name]) / len(symbols),
            "shannon_bits": shannon(symbols),
            "zeros": float((symbols == 0).float().mean()),
            "clipped": float((quantized.wanted.abs() > largest).float().mean()),
            "payload_rms": float(quantized.rms),
            "residual_over_payload": float(residual.square().mean().sqrt() / rms),
        }
        self.metrics |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        measured = [other for other in self._sizes if f"{other}/bits" in self.metrics]
        numbers = [len(self.quantizer.residual(other)) for other in measured]
        for metric in metrics:
            values = [self.metrics[f"{other}/{metric}"] for other in measured]
            self.metrics[f"coded/{metric}"] = float(np.average(values, weights=numbers))

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
