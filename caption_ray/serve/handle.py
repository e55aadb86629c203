"""The app's backend on Ray Serve: calls the captioner's replicas, and turns Ray's errors into the app's."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from caption_ray.serve.backend import (
    BackendUnavailableError,
    CaptionedPicture,
    GreedyWord,
    OverloadedError,
    Square,
)
from caption_ray.serve.schemas import ModelAnswer

_Answer = TypeVar("_Answer")

_MODEL_TIMEOUT_S = 5.0
"""The model's description takes no computing: a router that finds nobody to ask within this time has no replica."""

_MODEL_FRESH_S = 0.5
"""How long a description counts as that of now."""

_LOST = (RayError, RequestCancelledError, ReplicaUnavailableError, DeploymentUnavailableError)
"""What a call ends with whose replica died or was shut down under it, or that no replica will ever take."""

logger = logging.getLogger(__name__)


class ServeBackend:
    """Captions by a Serve deployment (`captioner.CaptionerReplica`).

    A call whose replica is lost is made once more, on another: captioning changes nothing, so twice is as good as once.
    The caller's deadline bounds both.  retry_after_s: what a client that finds the queue full is told.
    """

    def __init__(self, captioner: DeploymentHandle, retry_after_s: int) -> None:
        self._caption = captioner.options(method_name="caption")
        self._stream = captioner.options(method_name="stream", stream=True)
        self._model = captioner.options(method_name="model")
        self._retry_after_s = retry_after_s
        self._described: tuple[float, ModelAnswer] | None = None

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        """See CaptionBackend."""
        return await self._twice(lambda: self._caption.remote(list(pictures), beam_width))

    async def stream(self, picture: Square) -> AsyncIterator[GreedyWord | CaptionedPicture]:
        """See CaptionBackend. A stream whose replica is lost begins anew only where no word has been passed on."""
        for is_last in (False, True):
            events, has_begun, has_ended = self._stream.remote(picture), False, False
            try:
                async for event in events:
                    has_begun = True
                    yield event
                has_ended = True
                return
            except Exception as error:
                has_ended = True
                translated = self._translated(error)
                if is_last or has_begun or not isinstance(translated, BackendUnavailableError):
                    raise translated from error
                logger.warning("a replica was lost before its first word; asking another")
            finally:
                if not has_ended:
                    events.cancel()

    async def model(self) -> ModelAnswer:
        """See CaptionBackend."""
        now = time.monotonic()
        if self._described is None or now - self._described[0] > _MODEL_FRESH_S:
            try:
                answer = await asyncio.wait_for(self._twice(self._model.remote), _MODEL_TIMEOUT_S)
            except asyncio.TimeoutError:
                raise BackendUnavailableError("no replica of the model is up") from None
            self._described = (now, answer)
        return self._described[1]

    async def _twice(self, call: Callable[[], DeploymentResponse[_Answer]]) -> _Answer:
        try:
            return await self._once(call)
        except BackendUnavailableError as error:
            logger.warning("%s; asking another", error)
            return await self._once(call)

    async def _once(self, call: Callable[[], DeploymentResponse[_Answer]]) -> _Answer:
        response = call()
        try:
            answer: _Answer = await response
        except asyncio.CancelledError:
            response.cancel()  # takes the pictures out of the replica's queue
            raise
        except Exception as error:
            raise self._translated(error) from error
        return answer

    def _translated(self, error: Exception) -> Exception:
        """Return the app's error for one of Ray's; an error that the replica itself raised stays as it is."""
        if isinstance(error, BackPressureError):
            return OverloadedError(self._retry_after_s)
        raised = isinstance(error, RayTaskError) and not isinstance(error, (BackendUnavailableError, RayActorError))
        if isinstance(error, _LOST) and not raised:
            return BackendUnavailableError(f"a replica of the model was lost ({type(error).__name__})")
        return error
