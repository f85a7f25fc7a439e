"""Bytes that this process sends to others."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

_SENT: Mapping[str, int] = {"send": 0, "allreduce_": 0, "broadcast_": 0, "allgather_": 1}
"""Operation of torch.distributed → which of its arguments it sends."""


class Sent(TorchDispatchMode):
    """Context manager that counts the bytes that this process hands to exchanges, as autograd's threads do, too.

    Attributes:
        bytes: operation of torch.distributed → bytes so far. How an ``allreduce_`` passes them on is not looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = Counter[str](dict.fromkeys(_SENT, 0))

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "c10d" and name in _SENT and not (name == "broadcast_" and args[2] != dist.get_rank()):
            self.bytes[name] += sum(leaf.nbytes for leaf in tree_leaves(args[_SENT[name]]) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))
