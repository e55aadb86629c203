"""The app's backend on Ray Serve: calls the captioner's replicas, and turns Ray's errors into the app's.

The app itself calls once more where BackendUnavailableError says that a replica was lost: captioning changes nothing,
so twice is as good as once, and the router has left the lost one out by then.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import grpc
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord, OverloadedError, Square
from caption_ray.serve.schemas import ModelAnswer

_MODEL_TIMEOUT_S = 5.0
"""The model's description takes no computing: a router that finds nobody to ask within this time has no replica."""

Answer = TypeVar("Answer")

_LOST = (RayError, RequestCancelledError, ReplicaUnavailableError, DeploymentUnavailableError, grpc.RpcError)
"""What a call ends with whose replica died or was shut down under it, or that no replica will ever take."""


class ServeBackend:
    """Captions by a Serve deployment (`captioner.CaptionerReplica`).

    retry_after_s: what a client is told where all replicas and the queue before them are full.
    """

    def __init__(self, captioner: DeploymentHandle, retry_after_s: int = 1) -> None:
        # By gRPC rather than through the object store, where calls with a picture take twice the processor's time.
        captioner = captioner.options(_by_reference=False)
        self._caption = captioner.options(method_name="caption")
        self._stream = captioner.options(method_name="stream", stream=True)
        self._model = captioner.options(method_name="model")
        self._retry_after_s = retry_after_s

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        """See CaptionBackend."""
        answer: list[CaptionedPicture] = await self._answered(self._caption.remote(list(pictures), beam_width))
        return answer

    async def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        """See CaptionBackend. Closing it ends the work in the replica."""
        events, has_ended = self._stream.remote(picture), False
        try:
            async for event in events:
                yield _accepted(event)
            has_ended = True
        except Exception as error:
            has_ended = True
            raise self._translated(error) from error
        finally:
            if not has_ended:
                events.cancel()

    async def model(self) -> ModelAnswer:
        """See CaptionBackend."""
        try:
            answer: ModelAnswer = await asyncio.wait_for(self._answered(self._model.remote()), _MODEL_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise BackendUnavailableError("no replica of the model is up") from None
        return answer

    async def _answered(self, response: DeploymentResponse[Any]) -> Any:
        try:
            return _accepted(await response)
        except asyncio.CancelledError:
            response.cancel()  # takes the pictures out of the replica's queue
            raise
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        """Return the app's error for one of Ray's; an error that the replica itself raised stays as it is."""
        if isinstance(error, (BackPressureError, OverloadedError)):  # the router's refusal, or the replica's
            return OverloadedError(self._retry_after_s)
        raised = isinstance(error, RayTaskError) and not isinstance(error, (BackendUnavailableError, RayActorError))
        if isinstance(error, _LOST) and not raised:
            return BackendUnavailableError(f"a replica of the model was lost ({type(error).__name__})")
        return error


def _accepted(answer: Answer | OverloadedError) -> Answer:
    """Return what a replica answered. Raises OverloadedError where that is its refusal."""
    if isinstance(answer, OverloadedError):
        raise answer
    return answer
