"""A captioner that a test holds up, so that it decides what arrives meanwhile."""

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import torch

from caption_ray.config import DecodeOptions
from caption_ray.inference import Caption, Captioner
from caption_ray.serve.backend import Square
from caption_ray.serve.engine import Engine


def noise(seed: int, side: int = 64) -> Square:
    return np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8)


class Gated(Captioner):
    """A captioner that computes only when it is let, so that a test decides what arrives meanwhile."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__(captioner.bundle, captioner.device)
        self.gate = threading.Event()
        self.gate.set()
        self.computing = threading.Event()
        self.inside = threading.Semaphore(0)
        self.fails = False
        self.fails_on: Square | None = None
        self.steps = threading.Semaphore(1 << 20)  # a permit for each word of a stream, and for its end
        self.num_steps = 0

    def stream(self, picture: Square, max_words: int) -> Generator[tuple[str, float, torch.Tensor], None, Caption]:
        words = super().stream(picture, max_words)
        while self.steps.acquire(timeout=30):
            self.num_steps += 1
            try:
                word = next(words)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            yield word
        raise AssertionError("nobody has permitted the next word")

    def caption_each(self, pictures: Sequence[Square], options: Sequence[DecodeOptions]) -> list[list[Caption]]:
        self.computing.set()
        self.inside.release()
        assert self.gate.wait(30)
        if self.fails or any(picture is self.fails_on for picture in pictures):
            raise RuntimeError("out of memory")
        return super().caption_each(pictures, options)


@asynccontextmanager
async def busy(engine: Engine, gated: Gated) -> AsyncIterator[None]:
    """Hold the model up with one picture while the block runs."""
    gated.gate.clear()
    gated.computing.clear()
    first = asyncio.create_task(engine.caption([noise(0)], None))
    await asyncio.to_thread(gated.computing.wait, 30)
    try:
        yield
    finally:
        gated.gate.set()
        await first
