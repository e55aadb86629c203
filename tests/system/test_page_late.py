"""A caption that does not come in time: the page says so, and asks no more than once."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from browsing import Visit, served
from playwright.sync_api import Browser

from caption_ray.inference import Captioner
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, Square
from caption_ray.serve.example_pictures import FOLDER as EXAMPLES
from caption_ray.serve.local import LocalBackend
from caption_ray.serve.schemas import Limits, ModelAnswer


class Stuck:
    """A backend that takes longer than anybody waits; counts how often it is asked."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self.num_asked = 0

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        return await self._backend.caption(pictures, beam_width)

    async def stream(self, picture: Square) -> AsyncIterator[GreedyWord | CaptionedPicture]:
        self.num_asked += 1
        await asyncio.sleep(60)
        async for item in self._backend.stream(picture):
            yield item

    async def model(self) -> ModelAnswer:
        return await self._backend.model()


def test_caption_that_is_late_is_asked_for_once(browser: Browser, captioner: Captioner) -> None:
    """Chromium sends again what is answered 408, by each of the connections that the page's parts came by."""
    backend = Stuck(LocalBackend(captioner))
    with served(create_app(backend, Limits(deadline_s=1.0))) as address:
        visit = Visit(browser, address).open()
        visit.choose("dog.jpg", (EXAMPLES / "dog.jpg").read_bytes())
        assert visit.problem().startswith("That took too long")
        assert visit.failed_answers == 1
        visit.context.close()
    assert backend.num_asked == 1
