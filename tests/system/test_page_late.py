"""What comes late: a caption, which the page asks for no more than once, and an example that is wanted no more."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from browsing import Visit, served
from playwright.sync_api import Browser, Error, Route, expect

from caption_ray.inference import Captioner
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, Square
from caption_ray.serve.example_pictures import FOLDER as EXAMPLES
from caption_ray.serve.local import LocalBackend
from caption_ray.serve.schemas import Limits, ModelAnswer

PHOTO = (EXAMPLES / "dog.jpg").read_bytes()


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
        visit.choose("dog.jpg", PHOTO)
        assert visit.problem().startswith("That took too long")
        assert visit.failed_answers == 1
        visit.context.close()
    assert backend.num_asked == 1


def test_file_that_is_read_late_takes_nothing_from_the_next(browser: Browser, address: str) -> None:
    """Such as one of a network's disk: called off while it is read."""
    visit = Visit(browser, address)
    visit.page.add_init_script(
        """const read = Blob.prototype.arrayBuffer;
        let first = true;
        Blob.prototype.arrayBuffer = async function () {
            if (first) {
                first = false;
                await new Promise((resolve) => setTimeout(resolve, 1500));
                document.body.dataset.wasRead = "";
            }
            return read.call(this);
        };"""
    )
    visit.open()
    visit.choose("boat.jpg", (EXAMPLES / "boat.jpg").read_bytes())
    visit.choose("dog.jpg", PHOTO)
    caption = visit.caption()
    expect(visit.page.locator("body[data-was-read]")).to_be_attached()
    visit.page.wait_for_timeout(300)
    assert caption
    assert visit.caption() == caption
    assert visit.complaints == []


def test_frame_goes_though_what_was_dragged_over_is_gone(browser: Browser, address: str) -> None:
    visit = Visit(browser, address).open()
    drag = """(steps) => steps.forEach(([kind, id]) =>
        document.getElementById(id).dispatchEvent(new DragEvent(kind, { bubbles: true })))"""
    frame = visit.page.locator("body.dragging")
    visit.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p id=one>1</p><p id=two>2</p>')")
    visit.page.evaluate(drag, [["dragenter", "one"], ["dragenter", "two"], ["dragleave", "one"]])
    expect(frame).to_be_attached()  # it has gone from one to the other
    visit.page.evaluate("document.getElementById('two').remove()")  # it is never left
    visit.page.evaluate(drag, [["dragleave", "one"]])
    expect(frame).not_to_be_attached()
    visit.page.evaluate(drag, [["dragenter", "one"], ["dragleave", "one"]])
    expect(frame).not_to_be_attached()


def test_example_that_comes_late_replaces_nothing(browser: Browser, address: str) -> None:
    visit = Visit(browser, address)
    held: list[Route] = []

    def hold(route: Route) -> None:  # Playwright sets an attribute of it, which held.append takes none of
        held.append(route)

    visit.open()
    visit.page.route("**/static/examples/boat.jpg", hold)
    visit.page.locator('[data-example="boat.jpg"]').click()
    while not held:
        visit.page.wait_for_timeout(50)
    assert len(held) == 1
    visit.choose("dog.jpg", PHOTO)
    caption = visit.caption()
    with suppress(Error):  # nobody waits for it any more
        held[0].fulfill(body=PHOTO, content_type="image/jpeg")
    visit.page.wait_for_timeout(300)
    assert visit.caption() == caption
    expect(visit.page.locator('[data-example="boat.jpg"]')).to_have_attribute("aria-pressed", "false")
