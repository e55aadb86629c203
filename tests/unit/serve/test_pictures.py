import asyncio
import gc
import io
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
from live import client_of
from odd_pictures import png, png_bomb
from PIL import Image
from stand_in import StandIn

from caption_ray.errors import PictureError
from caption_ray.serve.backend import CaptionedPicture, OverloadedError, Square
from caption_ray.serve.pictures import FORMATS, PictureDecoder
from caption_ray.serve.schemas import Limits

LARGE = png_bomb(7_000, 7_000)  # takes a part of a second


def with_decoder(work: Callable[[PictureDecoder], Awaitable[None]], max_waiting: int) -> None:
    async def run() -> None:
        decoder = PictureDecoder(Limits(), num_threads=1, max_waiting=max_waiting)
        try:
            await work(decoder)
        finally:
            decoder.close()

    asyncio.run(run())


def test_abandoned_picture_counts_until_its_thread_is_free() -> None:
    async def work(decoder: PictureDecoder) -> None:
        abandoned = asyncio.create_task(decoder.decode(LARGE, 32))
        await asyncio.sleep(0.02)
        abandoned.cancel()
        await asyncio.wait({abandoned})
        with pytest.raises(OverloadedError):
            await decoder.decode(png(), 32)
        for _ in range(500):
            await asyncio.sleep(0.02)
            try:
                decoded = await decoder.decode(png(), 32)
            except OverloadedError:
                continue
            assert decoded.square.shape == (3, 32, 32)
            return
        raise AssertionError("no place has become free")

    with_decoder(work, max_waiting=0)


def test_picture_that_is_abandoned_in_the_queue_leaves_it_at_once() -> None:
    async def work(decoder: PictureDecoder) -> None:
        first = asyncio.create_task(decoder.decode(LARGE, 32))
        body = bytes(1000)
        num_references = sys.getrefcount(body)
        for _ in range(20):
            waiting = asyncio.create_task(decoder.decode(body, 32))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            del waiting
        assert not first.done()
        assert sys.getrefcount(body) == num_references  # and no more of its memory is held
        assert (await decoder.decode(png(), 32)).size.width == 40
        assert (await first).size.width == 7_000

    with_decoder(work, max_waiting=1)


@pytest.mark.parametrize("kind", FORMATS)
def test_other_threads_run_while_a_picture_is_decoded(kind: str) -> None:
    """The event loop is one of them: no kind is decoded by what keeps Python's lock throughout."""
    file = io.BytesIO()
    Image.new("RGB", (4_000, 4_000), "red").save(file, kind)

    async def longest_wait_s(decoder: PictureDecoder) -> float:
        waits, is_over = [0.0], threading.Event()

        def look() -> None:
            last = time.perf_counter()
            while not is_over.is_set():
                time.sleep(0.001)
                now = time.perf_counter()
                waits.append(now - last)
                last = now

        looker = threading.Thread(target=look)
        looker.start()
        try:
            await decoder.decode(file.getvalue(), 32)
        finally:
            is_over.set()
            looker.join()
        return max(waits)

    async def work(decoder: PictureDecoder) -> None:
        # The best of several: the machine itself may stand still for a moment.
        assert min([await longest_wait_s(decoder) for _ in range(4)]) < 0.25

    with_decoder(work, max_waiting=0)


def picture_errors() -> list[PictureError]:
    gc.collect()
    return [found for found in gc.get_objects() if issubclass(type(found), PictureError)]


def test_bytes_of_a_broken_picture_are_let_go_before_the_others_are_captioned() -> None:
    """An exception's traceback holds what was in the frames that it came through."""
    traces: list[bool] = []
    earlier = picture_errors()

    class Looking(StandIn):
        async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
            errors = [error for error in picture_errors() if all(error is not other for other in earlier)]
            traces.extend(any((error.__traceback__, error.__cause__, error.__context__)) for error in errors)
            return await super().caption(pictures, beam_width)

    with client_of(Looking()) as client:
        files = [("pictures", ("a.png", data, "image/png")) for data in (png(), png()[:60], b"none")]
        results = client.post("/v1/captions/batch", files=files).json()["results"]
    assert ["error" in result for result in results] == [False, True, True]
    assert traces == [False, False]
