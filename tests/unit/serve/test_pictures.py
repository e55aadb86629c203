import asyncio
from collections.abc import Awaitable, Callable

import pytest
from odd_pictures import png, png_bomb

from caption_ray.serve.backend import OverloadedError
from caption_ray.serve.pictures import PictureDecoder
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
        for _ in range(20):
            waiting = asyncio.create_task(decoder.decode(LARGE, 32))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
        assert not first.done()
        assert (await decoder.decode(png(), 32)).size.width == 40
        assert (await first).size.width == 7_000

    with_decoder(work, max_waiting=1)
