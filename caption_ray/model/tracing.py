"""Tracing a network while other threads compute with theirs.

torch.fx patches `nn.Module` for the whole process as long as it traces: a network that is called meanwhile in another
thread would be taken for a part of the traced one, and fail. A service that loads a model beside the one that answers
does both at once.
"""

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

_ONE_AT_A_TIME = threading.Lock()
"""Two tracings would take each other's patches for what was there before."""


class _OwnThread(fx.Tracer):
    """Traces what its own thread calls; other threads' calls go where they always go."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def trace(network: nn.Module) -> fx.GraphModule:
    """Return the network as a graph; its weights are the network's own."""
    with _ONE_AT_A_TIME:
        graph = _OwnThread().trace(network)
    return fx.GraphModule(network, graph)
