"""A network without weights, that runs without numbers: what passes through it has shapes only."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["shadow", "shadows"]


def shadow(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy on the "meta" device, which shares nothing with the network and takes no memory for weights.

    Parameters
    ----------
    network : on whatever device, "meta" too
    dtype : torch.dtype, optional
        Of weights of floating point; their own if not given.
    """
    memo: dict[int, Any] = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        is_weight = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_weight else empty
    twin = deepcopy(network, memo).eval()
    return twin if dtype is None else twin.to(dtype)


@contextmanager
def shadows(twin: nn.Module) -> Iterator[None]:
    """While open, tensors that are made have no numbers, and a `shadow` runs, as if it were on a CPU.

    It is not what it was afterwards: make another one for another pass.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        known: dict[int, Tensor] = {}  # tied weights stay tied
        for module in twin.modules():
            for place in (module._parameters, module._buffers):
                for name, tensor in list(place.items()):
                    if tensor is not None:
                        if id(tensor) not in known:
                            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                            is_weight = isinstance(tensor, nn.Parameter)
                            known[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_weight else empty
                        place[name] = known[id(tensor)]  # type: ignore[assignment]
        yield
