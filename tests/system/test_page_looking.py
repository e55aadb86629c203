"""Looking at a word while the rest of its caption is still on its way, or breaks off, and what the keys do there."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
from browsing import Visit, served
from playwright.sync_api import Browser, expect

from caption_ray.inference import Captioner
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord, Square
from caption_ray.serve.example_pictures import FOLDER as EXAMPLES
from caption_ray.serve.local import LocalBackend
from caption_ray.serve.schemas import ModelAnswer


class Slow:
    """A backend that lets a second pass before each word, and knows no other captions, which would replace it."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        found = await self._backend.caption(pictures, beam_width)
        return [CaptionedPicture(captions=each.captions[:1], model_id=each.model_id) for each in found]

    async def stream(self, picture: Square) -> AsyncIterator[GreedyWord | CaptionedPicture]:
        async for item in self._backend.stream(picture):
            await asyncio.sleep(1)
            yield item

    async def model(self) -> ModelAnswer:
        return await self._backend.model()


class BreaksOff(Slow):
    """A backend that is lost after three words."""

    async def stream(self, picture: Square) -> AsyncIterator[GreedyWord | CaptionedPicture]:
        num_words = 0
        async for item in self._backend.stream(picture):
            if num_words == 3:
                raise BackendUnavailableError("gone")
            yield item
            num_words += 1


def test_map_goes_with_the_words_of_a_caption_that_breaks_off(browser: Browser, captioner: Captioner) -> None:
    with served(create_app(BreaksOff(LocalBackend(captioner)))) as address:
        visit = Visit(browser, address).open()
        visit.choose("dog.jpg", (EXAMPLES / "dog.jpg").read_bytes())
        assert visit.problem()
        assert visit.page.locator(".word").count() == 0
        assert not np.array(visit.overlay()).any()
        visit.context.close()


def test_arrows_with_a_modifier_are_the_browsers(browser: Browser, captioner: Captioner) -> None:
    with served(create_app(LocalBackend(captioner))) as address:
        visit = Visit(browser, address).open()
        visit.choose("dog.jpg", (EXAMPLES / "dog.jpg").read_bytes())
        assert visit.caption()
        words = visit.page.locator(".word")
        words.first.focus()
        visit.page.keyboard.press("ArrowRight")
        expect(words.nth(1)).to_be_focused()
        for keys in ("Control+ArrowLeft", "Alt+Home", "Meta+End"):
            words.nth(1).press(keys)
            expect(words.nth(1)).to_be_focused()
        visit.context.close()


def test_word_that_is_looked_at_keeps_its_map(browser: Browser, captioner: Captioner) -> None:
    photo = (EXAMPLES / "dog.jpg").read_bytes()
    with served(create_app(Slow(LocalBackend(captioner)))) as address:
        visit = Visit(browser, address).open()
        visit.choose("dog.jpg", photo)
        visit.page.locator(".word").first.hover()
        assert visit.page.locator(".word").count() < 5  # more are to come
        assert len(visit.caption().split()) >= 5
        best = captioner.caption([captioner.decode_picture(photo)])[0][0]
        light = np.array(visit.overlay()).ravel()
        by_word = [np.corrcoef(light, word.ravel())[0, 1] for word in best.attention]
        assert np.argmax(by_word) == 0
        assert f"brightest {100 * best.attention[0].max():.0f} %" in visit.page.locator("#where").inner_text()
        visit.context.close()
