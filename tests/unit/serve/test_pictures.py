import asyncio
import io
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from odd_pictures import png, png_bomb
from PIL import Image

from caption_ray.serve.backend import OverloadedError
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
