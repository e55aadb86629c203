import asyncio
import threading

import pytest
from gated import Gated, noise

from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord
from caption_ray.serve.batching import BatchOptions
from caption_ray.serve.engine import Engine
from caption_ray.serve.local import LocalBackend


def test_a_stream_that_ends_before_an_earlier_one_ends_itself_alone(gated: Gated) -> None:
    engine = Engine(gated, BatchOptions(max_batch_size=4, num_threads=1))

    async def read_both() -> list[GreedyWord | CaptionedPicture]:
        gated.steps = threading.Semaphore(1)
        earlier, later = engine.stream(noise(1)), engine.stream(noise(2))
        read = [await anext(earlier)]
        begun = asyncio.create_task(anext(later))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        gated.steps.release(3)  # the earlier one goes on before the later begins
        assert isinstance(await begun, GreedyWord)
        await later.aclose()  # type: ignore[attr-defined]
        gated.steps.release(1 << 20)
        return read + [event async for event in earlier]

    *words, whole = asyncio.run(asyncio.wait_for(read_both(), 20))
    assert engine.is_running
    engine.close()
    assert isinstance(whole, CaptionedPicture)
    assert [word.text for word in words if isinstance(word, GreedyWord)] == [*whole.captions[0].words]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_model_whose_thread_has_ended_says_so_at_once(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LocalBackend(gated, BatchOptions(max_batch_size=4, num_threads=1))

    def end(*_: object) -> None:
        raise ValueError("a fault of the engine")

    async def ask() -> None:
        await backend.model()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(backend.stream(noise(1))), 0.5)
        with pytest.raises(BackendUnavailableError, match="has ended; start the service anew"):
            await backend.model()
        with pytest.raises(BackendUnavailableError, match="has ended"):
            await backend.caption([noise(1)], None)
        with pytest.raises(BackendUnavailableError, match="has ended"):
            await anext(backend.stream(noise(1)))

    monkeypatch.setattr(backend._engine, "_advance_streams", end)
    asyncio.run(ask())
    backend.close()


@pytest.mark.timeout(60)
def test_closing_tells_those_who_listen(gated: Gated) -> None:
    gated.steps = threading.Semaphore(1)
    engine = Engine(gated, BatchOptions(num_threads=1))
    closing = threading.Thread(target=engine.close, daemon=True)

    async def listen() -> None:
        async for _ in engine.stream(noise(3)):
            pass

    async def close_meanwhile() -> None:
        listening = asyncio.create_task(listen())
        while gated.num_steps == 0:
            await asyncio.sleep(0.01)
        closing.start()
        while not engine._closed:
            await asyncio.sleep(0.01)
        gated.steps.release(1)
        with pytest.raises(BackendUnavailableError, match="has been shut down"):
            await listening

    asyncio.run(asyncio.wait_for(close_meanwhile(), 20))
    closing.join(20)
    assert not closing.is_alive()
