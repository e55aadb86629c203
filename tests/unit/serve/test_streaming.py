import asyncio
from collections.abc import AsyncGenerator

from caption_ray.serve.schemas import ErrorAnswer, ErrorDetail, PictureAnswer, PictureSize, StreamWord, Timing
from caption_ray.serve.streaming import EventStream, Item

WORD = StreamWord(index=0, text="a", log_probability=-0.5)
ANSWER = PictureAnswer(
    captions=[],
    picture=PictureSize(width=1, height=1),
    model_id="ab",
    timing=Timing(decode_ms=1, model_ms=1, total_ms=2),
)


async def source(pause_s: float) -> AsyncGenerator[Item, None]:
    yield WORD
    await asyncio.sleep(pause_s)
    yield ANSWER


async def events(pause_s: float, hold_up_s: float) -> list[str]:
    """Return what a consumer gets in a second that takes its time after each event."""
    stream = EventStream(source(pause_s), lambda error: ErrorAnswer(error=ErrorDetail(code="c", message=str(error))))
    await stream.start()
    found = []
    async for chunk in stream.response(0.3, 10).body_iterator:
        assert isinstance(chunk, bytes)
        found.append(chunk.decode().split("\n")[0])
        if found[-1] == "event: caption":
            await asyncio.sleep(hold_up_s)
    return found


def test_nothing_follows_the_caption_however_late_it_is_taken() -> None:
    assert asyncio.run(events(pause_s=0, hold_up_s=0.4)) == ["event: word", "event: caption"]


def test_caption_that_does_not_come_in_time_is_an_error() -> None:
    assert asyncio.run(events(pause_s=5, hold_up_s=0)) == ["event: word", "event: error"]
