"""Decoding of pictures on a few threads, off the event loop, with bounded memory."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from caption_ray.data.images import open_picture, to_square
from caption_ray.serve.backend import OverloadedError, Square
from caption_ray.serve.schemas import Limits, PictureSize

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, by Pillow's names: of its other readers some start programs (EPS), most are of no use here.

Icons are no photographs, and decoded as they are opened, before anything could be checked. AVIF says one size in its
header and may have another in its stream: one of 1 kB that said 16x16 took 5 s and 240 MB, and could have taken more.
JPEG 2000 is decoded by a single thread that no other thread of Python runs beside: six seconds for a flat picture of 50
megapixels, in 800 bytes.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPicture:
    """The model's input, the upright size of the picture, and how long decoding took, waiting not counted."""

    square: Square
    size: PictureSize
    seconds: float


class PictureDecoder:
    """Decodes pictures, `num_threads` at a time; at most `max_waiting` wait for their turn.

    A thread holds a picture of up to `limits.max_pixels`, at 9 bytes a pixel; 19 where WebP has alpha, by what its
    decoder holds besides.
    """

    def __init__(self, limits: Limits, num_threads: int, max_waiting: int) -> None:
        self._limits = limits
        self._max_unfinished = num_threads + max_waiting
        self._num_unfinished = 0
        self._pool = ThreadPoolExecutor(num_threads, "decode")

    async def decode(self, data: bytes, side: int) -> DecodedPicture:
        """Return the picture in `data` as a square of `side` pixels.

        Raises PictureError, by the header alone where there are too many pixels, and OverloadedError.
        Cancelled while it waits, it is not decoded; cancelled later, it counts until its thread is free.
        """
        if self._num_unfinished >= self._max_unfinished:
            raise OverloadedError(self._limits.retry_after_s)
        self._num_unfinished += 1
        waiting = [data]  # the pool holds on to what was submitted, cancelled or not, until a thread comes to it
        future = self._pool.submit(self._decode, waiting, side)
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.done() or future.cancel():
                self._num_unfinished -= 1
                waiting.clear()
            else:
                loop = asyncio.get_running_loop()
                future.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(self._count_out))

    def _count_out(self) -> None:
        self._num_unfinished -= 1

    def _decode(self, waiting: list[bytes], side: int) -> DecodedPicture:
        started = time.perf_counter()
        picture = open_picture(waiting.pop(), max_pixels=self._limits.max_pixels, formats=FORMATS)
        square = to_square(picture, side)
        size = PictureSize(width=picture.width, height=picture.height)
        return DecodedPicture(square=square, size=size, seconds=time.perf_counter() - started)

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
