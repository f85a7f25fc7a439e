"""How many bytes autograd holds for the backward pass."""

from collections import Counter
from collections.abc import Iterable
from typing import Self

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class SavedTensorMeter:
    """Context manager that counts the bytes of tensors saved for backward, as they come and go.

    Every storage counts once, however many tensors or graph nodes share it; parameters and buffers
    do not count. Works on any device, ``meta`` included, and costs some microseconds per saved tensor.

    >>> with SavedTensorMeter([*net.parameters(), *net.buffers()]) as meter:
    ...     net(images).sum().backward()
    >>> meter.peak  # bytes

    Args:
        exclude: tensors that are there anyway (parameters and buffers), left out of the count.

    Attributes:
        current: bytes held now.
        peak: the most that were held at one time.
        alive: storage identity → bytes, of what is held now.
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        self._kept = [tensor.untyped_storage() for tensor in exclude]  # alive, so that no address is used twice
        self._excluded = {storage._cdata for storage in self._kept}
        self._holders = Counter[int]()
        self.alive: dict[int, int] = {}
        self.current = self.peak = 0
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._hooks.__exit__(*exc_info)

    def _pack(self, tensor: Tensor) -> "Tensor | _Held":
        # Packing a detached tensor: packing the tensor itself would tie the graph into a cycle.
        if _storage_id(tensor) in self._excluded:
            return tensor.detach()
        return _Held(tensor.detach(), self)

    def _hold(self, storage: int, nbytes: int) -> None:
        self._holders[storage] += 1
        if self._holders[storage] == 1:
            self.alive[storage] = nbytes
            self.current += nbytes
            self.peak = max(self.peak, self.current)

    def _release(self, storage: int) -> None:
        self._holders[storage] -= 1
        if not self._holders[storage]:
            del self._holders[storage]
            self.current -= self.alive.pop(storage)


class _Held:
    """A saved tensor; tells its meter when autograd lets it go."""

    __slots__ = ("meter", "storage", "tensor", "version")

    def __init__(self, tensor: Tensor, meter: SavedTensorMeter) -> None:
        self.tensor, self.meter, self.version = tensor, meter, tensor._version
        self.storage = _storage_id(tensor)
        meter._hold(self.storage, tensor.untyped_storage().nbytes())

    def __del__(self) -> None:
        self.meter._release(self.storage)


def _unpack(packed: Tensor | _Held) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    if packed.tensor._version != packed.version:  # without hooks torch sees this itself
        raise RuntimeError(
            f"A tensor of shape {tuple(packed.tensor.shape)}, needed for backward, was changed in place."
        )
    return packed.tensor


def _storage_id(tensor: Tensor) -> int:
    # The address of the storage object, not of its data: data has no address on the meta device.
    return tensor.untyped_storage()._cdata
