import asyncio
from contextvars import ContextVar

import pytest
from stand_in import MODEL, StandIn

from caption_ray.serve.backend import BackendUnavailableError, OverloadedError
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.model_lookup import ModelLookup
from caption_ray.serve.schemas import ModelAnswer


class Slow(StandIn):
    """Takes a moment to describe the model."""

    described = MODEL

    async def model(self) -> ModelAnswer:
        await asyncio.sleep(0.1)
        await super().model()
        return self.described


NEXT = MODEL.model_copy(update={"beam_width": MODEL.beam_width + 1})


def lookup_of(backend: StandIn) -> ModelLookup:
    return ModelLookup(backend, ServiceMetrics().retries)


def test_many_who_ask_at_once_ask_once() -> None:
    backend = Slow()

    async def ask() -> list[ModelAnswer]:
        lookup = lookup_of(backend)
        return await asyncio.gather(*(lookup.now() for _ in range(20)), *(lookup.recently() for _ in range(20)))

    assert asyncio.run(ask()) == [MODEL] * 40
    assert backend.num_questions == 1


def test_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    async def ask() -> ModelAnswer:
        lookup = lookup_of(Slow())
        first, second = asyncio.create_task(lookup.now()), asyncio.create_task(lookup.now())
        await asyncio.sleep(0.01)
        first.cancel()
        return await second

    assert asyncio.run(ask()) == MODEL


def test_question_of_all_is_not_asked_in_the_context_of_one() -> None:
    """Ray Serve keeps there whose request it is, and with that cancels what it has called."""
    request_id = ContextVar("request_id", default="nobody's")
    seen: list[str] = []

    class Noting(StandIn):
        async def model(self) -> ModelAnswer:
            seen.append(request_id.get())
            return await super().model()

    async def ask() -> ModelAnswer:
        request_id.set("a request's")
        return await lookup_of(Noting()).now()

    assert asyncio.run(ask()) == MODEL
    assert seen == ["nobody's"]


def test_a_replica_that_dies_is_asked_once_more() -> None:
    backend = StandIn()
    backend.failing_model = [BackendUnavailableError("died")]
    assert asyncio.run(lookup_of(backend).now()) == MODEL
    assert backend.num_questions == 2
    backend.failing_model = [BackendUnavailableError("died")] * 2
    with pytest.raises(BackendUnavailableError):
        asyncio.run(lookup_of(backend).now())


def test_model_of_long_ago_is_asked_for_before_it_judges_anything() -> None:
    """Another one may have been rolled out in a quiet time; one that cannot be asked is taken as it was."""
    backend = Slow()

    async def ask() -> None:
        lookup = lookup_of(backend)
        await lookup.recently()
        backend.described = NEXT
        none: list[Exception] = []
        for failing in (none, [OverloadedError(1)], [BackendUnavailableError("died")] * 2):
            lookup._asked_at -= 60
            lookup._known_at -= 60
            backend.failing_model = list(failing)
            assert await lookup.recently() == NEXT
        assert backend.num_questions == 5

    asyncio.run(ask())


def test_nobody_waits_for_a_model_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = StandIn()

    async def ask() -> None:
        lookup = lookup_of(backend)
        await lookup.recently()
        lookup._asked_at -= 2  # seconds
        backend.failing_model = [OverloadedError(1)]
        assert await lookup.recently() == MODEL
        assert backend.num_questions == 1
        await asyncio.sleep(0)  # the question is asked behind the answer's back
        assert backend.num_questions == 2
        assert await lookup.recently() == MODEL
        assert backend.num_questions == 2

    asyncio.run(ask())
