import asyncio
import time
from collections.abc import Iterator

import pytest
from gated import Gated, busy, noise

from caption_ray.config import DecodeOptions
from caption_ray.inference import Captioner
from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord, Square
from caption_ray.serve.batching import BatchOptions
from caption_ray.serve.engine import BatchRecord, Engine


@pytest.fixture
def engine(gated: Gated, records: list[BatchRecord]) -> Iterator[Engine]:
    engine = Engine(gated, BatchOptions(max_batch_size=4, num_threads=1), records.append)
    yield engine
    gated.gate.set()
    engine.close()


def test_answers_are_the_captioners_own(engine: Engine, plain: Captioner) -> None:
    pictures = [noise(seed) for seed in range(3)]
    answers = asyncio.run(engine.caption(pictures, 2))
    expected = plain.caption(pictures, DecodeOptions(beam_width=2, max_words=6))
    assert [[c.text for c in answer.captions] for answer in answers] == [[c.text for c in found] for found in expected]
    assert {answer.model_id for answer in answers} == {plain.bundle.manifest.digest}


def test_what_arrives_while_the_model_computes_is_the_next_batch(
    engine: Engine, gated: Gated, records: list[BatchRecord]
) -> None:
    async def ask() -> None:
        async with busy(engine, gated):
            waiting = [asyncio.create_task(engine.caption([noise(seed)], None)) for seed in range(1, 7)]
            await asyncio.sleep(0.1)
        await asyncio.gather(*waiting)

    asyncio.run(ask())
    # Six waited: a whole batch of four, then the rest.
    assert [len(record.answers) for record in records] == [1, 4, 2]
    assert all(record.model_s > 0 for record in records)


def test_one_batch_may_have_many_beam_widths(engine: Engine, gated: Gated, records: list[BatchRecord]) -> None:
    async def ask() -> list[list[CaptionedPicture]]:
        async with busy(engine, gated):
            waiting = [asyncio.create_task(engine.caption([noise(8)], width)) for width in (3, 1, 3, None)]
            await asyncio.sleep(0.1)
        return await asyncio.gather(*waiting)

    answers = asyncio.run(ask())
    assert [len(answer.captions) for (answer,) in answers] == [3, 1, 3, 4]
    assert [len(record.answers) for record in records] == [1, 4]


@pytest.mark.parametrize(("wait_s", "expected"), [(0.0, 2), (1.0, 1)])
def test_idle_model_waits_for_more_only_where_it_is_told_to(
    engine: Engine, records: list[BatchRecord], wait_s: float, expected: int
) -> None:
    engine.options = BatchOptions(max_batch_size=2, batch_wait_s=wait_s, num_threads=1)

    async def ask() -> None:
        first = asyncio.create_task(engine.caption([noise(1)], None))
        await asyncio.sleep(0.2)
        await engine.caption([noise(2)], None)
        await first

    asyncio.run(ask())
    assert len(records) == expected


def test_cancelled_pictures_are_not_computed(engine: Engine, gated: Gated, records: list[BatchRecord]) -> None:
    async def ask() -> None:
        async with busy(engine, gated):
            waiting = [asyncio.create_task(engine.caption([noise(seed)], None)) for seed in (1, 2, 3)]
            await asyncio.sleep(0.1)
            waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(ask())
    assert [len(record.answers) for record in records] == [1, 2]


def test_what_is_left_of_a_call_that_failed_is_not_computed(
    engine: Engine, gated: Gated, records: list[BatchRecord]
) -> None:
    pictures = [noise(seed) for seed in range(41)]
    gated.fails_on = pictures[0]

    async def ask() -> None:
        with pytest.raises(RuntimeError, match="out of memory"):
            await engine.caption(pictures, None)
        await engine.caption([noise(9)], None)

    asyncio.run(ask())
    # Of the batch with the bad one each is tried by itself, the bad one first. A batch or two may have begun by then.
    assert sum(len(record.answers) for record in records) < 20


def test_failed_batch_tells_its_callers_and_the_next_one_is_computed(engine: Engine, gated: Gated) -> None:
    gated.fails = True
    for expected in (1, 2):
        with pytest.raises(RuntimeError, match="out of memory"):
            asyncio.run(engine.caption([noise(1)], None))
        assert engine.num_failures == expected
    gated.fails = False
    assert len(asyncio.run(engine.caption([noise(1)], None))) == 1
    assert engine.num_failures == 0
    assert engine.is_running


def test_failed_streams_count_as_failed_batches_do(
    engine: Engine, gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a GPU that is beyond repair would never be noticed where clients ask for streams alone."""

    async def ask() -> None:
        async for _ in engine.stream(noise(1)):
            pass

    def fail(picture: Square, max_words: int) -> None:
        raise RuntimeError("CUDA error")

    with monkeypatch.context() as patch:
        patch.setattr(gated, "stream", fail)
        for expected in (1, 2):
            with pytest.raises(RuntimeError, match="CUDA error"):
                asyncio.run(ask())
            assert engine.num_failures == expected
    asyncio.run(ask())
    assert engine.num_failures == 0


def test_stream_gives_the_greedy_caption_word_by_word(engine: Engine, plain: Captioner) -> None:
    async def read() -> list[GreedyWord | CaptionedPicture]:
        return [event async for event in engine.stream(noise(3))]

    *words, whole = asyncio.run(read())
    ((expected,),) = plain.caption([noise(3)], DecodeOptions(beam_width=1, max_words=6))
    assert isinstance(whole, CaptionedPicture)
    assert tuple(word.text for word in words if isinstance(word, GreedyWord)) == expected.words
    assert whole.captions[0].words == expected.words
    assert whole.captions[0].attention == pytest.approx(expected.attention, abs=1e-5)
    assert whole.captions[0].log_probability == pytest.approx(expected.log_probability, abs=1e-4)


def test_streams_and_batches_take_turns(gated: Gated) -> None:
    """A batch that waits when streams do is not behind all of them, nor are they behind all batches."""
    wholes: list[CaptionedPicture] = []
    batches: list[tuple[int, int]] = []  # pictures, and streams that have not ended, seen on the engine's own thread
    engine = Engine(
        gated,
        BatchOptions(max_batch_size=4, num_threads=1),
        lambda record: batches.append((len(record.answers), len(engine._streams))),
    )

    async def read(seed: int) -> None:
        wholes.extend([event async for event in engine.stream(noise(seed)) if isinstance(event, CaptionedPicture)])

    async def both() -> None:
        async with busy(engine, gated):
            tasks = [asyncio.create_task(read(seed)) for seed in range(4)]
            tasks += [asyncio.create_task(engine.caption([noise(seed)], None)) for seed in range(8)]
            await asyncio.sleep(0.1)
        await asyncio.gather(*tasks)

    asyncio.run(both())
    engine.close()
    assert len(wholes) == 4
    assert [pictures for pictures, _ in batches] == [1, 4, 4]
    # One stream begins before each batch, so that all but one, and then all but two, are left at least.
    assert batches[1][1] >= 3
    assert batches[2][1] >= 2


def test_a_stream_that_is_closed_ends(engine: Engine) -> None:
    async def read_one() -> None:
        stream = engine.stream(noise(3))
        assert isinstance(await anext(stream), GreedyWord)
        await stream.aclose()  # type: ignore[attr-defined]
        await engine.caption([noise(1)], None)

    asyncio.run(read_one())
    deadline = time.monotonic() + 5
    while engine._streams and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine._streams == []


def test_a_new_model_answers_what_has_not_begun(engine: Engine, gated: Gated, plain: Captioner) -> None:
    other = Captioner(plain.bundle, plain.device)
    object.__setattr__(
        other,
        "bundle",
        type(plain.bundle)(
            location=plain.bundle.location,
            manifest=plain.bundle.manifest.model_copy(update={"files": {"model.safetensors": "0"}}),
            config=plain.bundle.config,
            vocabulary=plain.bundle.vocabulary,
            model=plain.bundle.model,
            metrics={},
        ),
    )

    async def ask() -> tuple[str, str]:
        gated.gate.clear()
        gated.computing.clear()
        before = asyncio.create_task(engine.caption([noise(0)], None))
        await asyncio.to_thread(gated.computing.wait, 30)
        after = asyncio.create_task(engine.caption([noise(1)], None))
        await asyncio.sleep(0.05)
        engine.captioner = other
        gated.gate.set()
        return (await before)[0].model_id, (await after)[0].model_id

    assert asyncio.run(ask()) == (plain.bundle.manifest.digest, other.bundle.manifest.digest)


def test_picture_of_another_size_is_fitted(engine: Engine) -> None:
    (answer,) = asyncio.run(engine.caption([noise(1, side=96)], None))
    assert answer.captions[0].attention.shape[1:] == (2, 2)


def test_closed_engine_says_that_no_model_is_there(plain: Captioner) -> None:
    engine = Engine(plain, BatchOptions())
    engine.close()
    assert not engine.is_running
    with pytest.raises(BackendUnavailableError, match="shut down"):
        asyncio.run(engine.caption([noise(1)], None))


def test_closing_answers_those_who_wait(gated: Gated) -> None:
    engine = Engine(gated, BatchOptions(max_batch_size=1, num_threads=1))

    async def ask() -> list[object]:
        gated.gate.clear()
        gated.computing.clear()
        tasks = [asyncio.create_task(engine.caption([noise(seed)], None)) for seed in range(2)]
        await asyncio.to_thread(gated.computing.wait, 30)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.05)
        gated.gate.set()
        await closing
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second = asyncio.run(ask())
    assert isinstance(first, list)
    assert isinstance(second, BackendUnavailableError)


def test_a_picture_that_the_model_fails_on_spoils_no_other(engine: Engine, gated: Gated) -> None:
    gated.fails_on = bad = noise(5)

    async def ask() -> list[object]:
        async with busy(engine, gated):
            waiting = [asyncio.create_task(engine.caption([p], None)) for p in (noise(1), bad, noise(2))]
            await asyncio.sleep(0.1)
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert isinstance(second, RuntimeError)
    assert engine.num_failures == 0


def test_batch_that_cannot_be_counted_is_answered(gated: Gated, caplog: pytest.LogCaptureFixture) -> None:
    def observe(record: BatchRecord) -> None:
        raise OSError("the metrics agent is gone")

    engine = Engine(gated, BatchOptions(), observe)
    try:
        assert len(asyncio.run(engine.caption([noise(0)], None))) == 1
        assert engine.num_failures == 0
    finally:
        engine.close()
    assert "a batch has not been counted" in caplog.text


def test_how_long_a_batch_has_been_computed(engine: Engine, gated: Gated) -> None:
    async def ask() -> None:
        async with busy(engine, gated):
            await asyncio.sleep(0.1)
            assert 0.1 <= engine.busy_s < 5

    asyncio.run(ask())
    time.sleep(0.05)
    assert engine.busy_s == 0
