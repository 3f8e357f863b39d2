"""What a CUDA graph cannot hold, refused on any machine: reads by the host, shapes that depend on data, copies from the host."""

from typing import Any

import tiny
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
HOST_READS = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.allclose}
SHAPES_OF_DATA = {
    *(aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive),
    *(aten.bincount, aten.argwhere, aten.nonzero_numpy),
}
FROM_THE_HOST = {aten.lift_fresh, aten.lift_fresh_copy, aten.lift}


class Refused(Exception):
    """Something that a CUDA graph cannot hold."""


class OnlyWhatAGraphHolds(TorchDispatchMode):
    """Raises Refused where an operation reads the device from the host, has a shape that depends on data, or copies from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in HOST_READS | SHAPES_OF_DATA | FROM_THE_HOST or func is aten.repeat_interleave.Tensor:
            raise Refused(str(func))
        if packet in (aten.index, aten.index_put, aten.index_put_) and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        ):
            raise Refused(f"{func} with a mask")
        found = func(*args, **(kwargs or {}))
        devices = {one.device.type for one in [*args, found] if isinstance(one, Tensor) and one.ndim}
        if len(devices) > 1 and packet in (aten._to_copy, aten.copy_):
            raise Refused(f"{func} between {' and '.join(sorted(devices))}")
        return found


class Asking(nn.Module):
    """A student that reads its input on the host in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny.net(tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (2.0 if x.mean().item() > 1e9 else 1.0)
