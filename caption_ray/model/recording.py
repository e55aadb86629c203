"""CUDA graphs: what a GPU does again and again in the same shapes, recorded once and then launched as a whole.

A pass of a small batch, and a step of a search, are some tens to hundreds of small kernels, which Python takes several
times as long to launch one by one as the GPU to run.
"""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

logger = logging.getLogger(__name__)

WARM_UPS = 3
"""Times that all is done before it is recorded: libraries choose their kernels and take their memory."""

_Result = TypeVar("_Result")


def records_on(device: torch.device) -> bool:
    """Tell whether to record: on GPUs, unless CAPTION_RAY_GRAPHS=off says otherwise."""
    switched_off = os.environ.get("CAPTION_RAY_GRAPHS", "").lower() in ("off", "0")
    return device.type == "cuda" and not switched_off


def room_for(number: int) -> int:
    """Return for how many to record what is to serve so many: the next power of two, from 16 on of eights.

    1, 2, 4, 8, 16, 24, 32, 40, ...: so that few graphs serve all, and little is computed for nothing.
    """
    if number > 16:
        return -(-number // 8) * 8
    room = 1
    while room < number:
        room *= 2
    return room


_alone = threading.RLock()


def undisturbed(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which to compute on a device where other threads of the process may be recording.

    A recording may fail if anything else is done on the GPU meanwhile ("CUDA Graphs" in PyTorch's documentation). It is
    also to be held from putting in what a recording reads to taking away what it has written. For GPUs alone.
    """
    return _alone if device.type == "cuda" else nullcontext()


class Recorder:
    """Records on one device. What it has recorded shares memory, and must not run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The same for all: libraries keep memory for every stream.
        self._pool: Any = None
        self._beside: torch.cuda.Stream | None = None

    def record(self, compute: Callable[[], _Result]) -> tuple[Callable[[], None], _Result]:
        """Return what does again all that `compute` does on the device, and what it returns, written anew each time.

        `compute` must find its input in the same place each time. It runs `WARM_UPS` times first, and not once more:
        what it returns has no meaning before the first call.
        Raises RuntimeError where it cannot be recorded, as when there is too little memory.
        """
        with undisturbed(self._device):
            if self._beside is None:
                self._pool, self._beside = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)
            current = torch.cuda.current_stream(self._device)
            self._beside.wait_stream(current)
            with torch.cuda.stream(self._beside):
                for _ in range(WARM_UPS):
                    compute()
            current.wait_stream(self._beside)
            graph = torch.cuda.CUDAGraph()
            with (
                torch.cuda.stream(current),  # which a recording that fails does not return to
                # Other threads, such as NCCL's, go on with what a recording must not do.
                torch.cuda.graph(graph, pool=self._pool, stream=self._beside, capture_error_mode="thread_local"),
            ):
                result = compute()
        return graph.replay, result


def reason_of(error: RuntimeError) -> str:
    """Return in a line why something could not be recorded: too little memory, mostly, by whatever name."""
    return str(error).partition("\n")[0]


def recorded_or_none(what: str, record: Callable[[], _Result]) -> _Result | None:
    """Return what has been recorded; None, having logged why, where it could not be and is computed without."""
    try:
        return record()
    except RuntimeError as error:
        logger.warning("%s: computed more slowly, since no CUDA graph could be recorded: %s", what, reason_of(error))
        return None
