"""What the ingress asks of Serve, by a handle that notes it; real ones are in tests/integration/serve."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from gated import noise
from stand_in import CAPTION

from caption_ray.serve.backend import CaptionedPicture, OverloadedError, Square
from caption_ray.serve.handle import ServeBackend


class Response:
    def __init__(self, answer: object, seconds: float) -> None:
        self._answer, self._seconds, self.cancelled = answer, seconds, False

    def __await__(self) -> Generator[Any, None, object]:
        yield from asyncio.sleep(self._seconds).__await__()
        return self._answer

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Answers after a while; the first calls last, and one of them with a refusal at once."""

    def __init__(self, refused: int | None = None) -> None:
        self.refused = refused
        self.calls: list[list[Square]] = []
        self.responses: list[Response] = []

    def options(self, **_: object) -> "Handle":
        return self

    def remote(self, pictures: list[Square], beam_width: int | None) -> Response:
        number = len(self.calls)
        self.calls.append(pictures)
        if number == self.refused:
            self.responses.append(Response(OverloadedError(1), 0))
        else:
            answer = [CaptionedPicture(captions=(CAPTION,), model_id=str(number))]
            self.responses.append(Response(answer, 0.2 - 0.02 * number))
        return self.responses[-1]


def test_pictures_are_called_for_one_by_one_and_together() -> None:
    """Serve starts replicas by the number of calls: sixteen pictures in one would count as one."""
    handle, pictures = Handle(), [noise(seed) for seed in range(3)]
    answers = asyncio.run(ServeBackend(handle).caption(pictures, None))  # type: ignore[arg-type]
    assert [answer.model_id for answer in answers] == ["0", "1", "2"]
    assert [[picture is given for given in call] for call, picture in zip(handle.calls, pictures, strict=True)] == [
        [True]
    ] * 3


def test_what_is_left_of_a_batch_that_is_refused_is_cancelled() -> None:
    handle = Handle(refused=1)
    with pytest.raises(OverloadedError):
        asyncio.run(ServeBackend(handle).caption([noise(seed) for seed in range(3)], None))  # type: ignore[arg-type]
    assert [response.cancelled for response in handle.responses] == [True, False, True]
