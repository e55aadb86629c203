"""How the page goes on: over a slow connection, after a failure, past a change of the model, and by keyboard."""

import asyncio
import io
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browsing import Visit, served
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Route, expect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caption_ray.bundle import BundleManifest
from caption_ray.inference import Captioner
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, Square
from caption_ray.serve.example_pictures import FOLDER as EXAMPLES
from caption_ray.serve.local import LocalBackend
from caption_ray.serve.schemas import Limits, ModelAnswer

PHOTO = (EXAMPLES / "dog.jpg").read_bytes()
ORIENTATION = 0x0112  # EXIF's tag


class Line:
    """The way to the service: it keeps what is sent, may carry only so many bytes a second, and may be down."""

    def __init__(self, app: ASGIApp, bytes_per_s: float = float("inf")) -> None:
        self._app, self._bytes_per_s = app, bytes_per_s
        self.is_down, self.retry_after_s = False, 3
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.is_down and scope["type"] == "http":
            headers = {"Retry-After": str(self.retry_after_s)}
            await PlainTextResponse("down", 503, headers)(scope, receive, send)
            return
        place = len(self.bodies)
        if scope["type"] == "http" and scope["method"] == "POST":
            self.bodies.append(b"")

        async def receive_slowly() -> Message:
            message = await receive()
            if chunk := message.get("body"):
                self.bodies[place] += chunk
                await asyncio.sleep(len(chunk) / self._bytes_per_s)
            return message

        await self._app(scope, receive_slowly, send)


class Swapped:
    """A backend whose model may be exchanged for another."""

    def __init__(self, backend: LocalBackend) -> None:
        self.backend = backend

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        return await self.backend.caption(pictures, beam_width)

    async def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        async for item in self.backend.stream(picture):
            yield item

    async def model(self) -> ModelAnswer:
        return await self.backend.model()


@pytest.fixture
def line(captioner: Captioner) -> Line:
    return Line(create_app(LocalBackend(captioner)))


@pytest.fixture
def visit(browser: Browser, line: Line) -> Iterator[Visit]:
    """A visit over the line, to a page that has all its parts; in the end it may have no complaints."""
    with served(line) as address:
        visit = Visit(browser, address).open()
        expect(visit.page.locator("#model")).to_contain_text("Model sharp")
        yield visit
        visit.context.close()
        assert visit.complaints == []


def noise(width: int, height: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def photo_on_its_side() -> bytes:
    """Return a JPEG of over 2 MB, red, green, blue and grey in its corners, to be turned by a quarter."""
    corners = np.array([[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [120, 120, 120]]])
    grain = np.random.default_rng(0).integers(-40, 40, (1800, 2400, 3))
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = corners.repeat(900, 0).repeat(1200, 1) + grain
    Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=92, exif=exif)
    return file.getvalue()


def test_photo_of_some_megabytes_is_sent_smaller_and_upright(visit: Visit, line: Line) -> None:
    photo = photo_on_its_side()
    assert 2 << 20 < len(photo) < Limits().max_bytes
    visit.choose("photo.jpg", photo)
    assert visit.caption()
    expect(visit.page.locator("#note")).to_have_text(re.compile(r"^Scaled down from \d\.\d MB to "))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photo)))
    assert len(line.bodies) == 2  # for the caption, and for the others
    for body in line.bodies:
        assert len(body) <= 2 << 20
        sent = Image.open(io.BytesIO(body))
        assert sent.getexif().get(ORIENTATION, 1) == 1
        assert sent.height > sent.width
        seen, meant = (np.asarray(picture.resize((2, 2), Image.Resampling.BOX), float) for picture in (sent, upright))
        assert np.abs(seen - meant).max() < 8


def test_large_picture_that_the_browser_cannot_read_is_sent_as_it_is(visit: Visit, line: Line) -> None:
    picture = noise(900, 900, "TIFF")
    assert len(picture) > 2 << 20
    visit.choose("scan.tiff", picture, "image/tiff")
    assert visit.caption()
    expect(visit.page.locator("#note")).to_be_hidden()
    assert line.bodies == [picture, picture]


def test_what_did_not_arrive_in_time_is_sent_smaller_when_it_is_tried_again(
    browser: Browser, captioner: Captioner
) -> None:
    picture = noise(800, 600, "PNG")
    assert 1 << 20 < len(picture) < 2 << 20
    line = Line(create_app(LocalBackend(captioner), Limits(body_timeout_s=3)), bytes_per_s=250_000)
    with served(line) as address:
        visit = Visit(browser, address).open()
        visit.choose("noise.png", picture, "image/png")
        assert visit.problem().startswith("That took too long")
        visit.page.get_by_role("button", name="Try again").click()
        assert visit.caption()
        expect(visit.page.locator("#note")).to_have_text(re.compile(r"^Scaled down from 1\.4 MB to "))
        assert len(line.bodies[-1]) <= len(picture) / 4
        Image.open(io.BytesIO(line.bodies[-1])).load()
        visit.context.close()


def test_smaller_copy_is_made_smaller_still_for_a_limit_of_which_the_page_did_not_know(
    browser: Browser, captioner: Captioner
) -> None:
    """As where the service has been started anew, with another limit, since the page was loaded."""
    line = Line(create_app(LocalBackend(captioner), Limits(max_bytes=300_000)))
    with served(line) as address:
        visit = Visit(browser, address)

        def with_the_limit_of_before(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, body=answer.text().replace('content="300000"', 'content="10485760"'))

        visit.page.route(f"{address}/", with_the_limit_of_before)
        visit.open().choose("photo.jpg", photo_on_its_side())
        assert visit.caption()
        expect(visit.page.locator("#note")).to_have_text(re.compile(r"^Scaled down from \d\.\d MB to \d+ kB "))
        assert visit.failed_answers == 1
        assert 0 < len(line.bodies[-1]) <= 300_000
        visit.context.close()


def test_example_chosen_offline_comes_when_the_connection_is_back(visit: Visit) -> None:
    example = visit.page.locator('[data-example="boat.jpg"]')
    visit.context.set_offline(True)
    example.click()
    assert visit.problem().startswith("You are offline")
    expect(visit.page.locator("#unseen")).to_be_hidden()
    expect(visit.page.locator("#frame")).to_be_hidden()
    visit.context.set_offline(False)
    assert visit.caption()
    expect(visit.page.locator("#problem")).to_be_hidden()
    expect(visit.page.locator("#frame")).to_be_visible()
    assert visit.page.locator("#picture").evaluate("image => image.naturalWidth") > 0
    expect(example).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("by_hand", [False, True])
def test_example_that_the_service_was_too_busy_for_is_fetched_again(visit: Visit, line: Line, by_hand: bool) -> None:
    line.is_down, line.retry_after_s = True, 30 if by_hand else 3
    visit.page.locator('[data-example="boat.jpg"]').click()
    message = visit.problem()
    assert message.startswith("The service is busy")
    assert re.search(r"Trying again in \d+ s\.", message)
    line.is_down = False
    if by_hand:
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.page.locator("#problem")).to_be_hidden(timeout=10_000)
    assert visit.caption()
    assert line.bodies[0] == (EXAMPLES / "boat.jpg").read_bytes()


def test_example_whose_answer_never_came_is_fetched_again_by_hand(visit: Visit, line: Line) -> None:
    visit.page.route("**/static/examples/boat.jpg", lambda route: route.abort())
    visit.page.locator('[data-example="boat.jpg"]').click()
    assert visit.problem().startswith("The service does not answer")
    assert line.bodies == []
    visit.page.unroute("**/static/examples/boat.jpg")
    visit.page.get_by_role("button", name="Try again").click()
    assert visit.caption()
    assert line.bodies[0] == (EXAMPLES / "boat.jpg").read_bytes()


def test_page_notices_that_another_model_answers(browser: Browser, captioner: Captioner) -> None:
    bundle = captioner.bundle
    narrow = bundle.config.model_copy(update={"decode": bundle.config.decode.changed(beam_width=2)})
    manifest = BundleManifest(name="next", data_digest="", files={"config.json": "0" * 64})
    backend = Swapped(LocalBackend(captioner))
    with served(create_app(backend)) as address:
        visit = Visit(browser, address).open()
        visit.choose("dog.jpg", PHOTO)
        visit.caption()
        expect(visit.page.locator("#alternatives button")).to_have_count(4)
        backend.backend = LocalBackend(Captioner(replace(bundle, config=narrow, manifest=manifest)))
        visit.choose("dog.jpg", PHOTO)
        visit.caption()
        expect(visit.page.locator("#model")).to_contain_text("Model next")
        expect(visit.page.locator("#alternatives button")).to_have_count(2)
        expect(visit.page.locator("#note")).to_be_hidden()
        visit.choose("dog.jpg", PHOTO)
        visit.caption()
        assert sum(url.endswith("/v1/model") for url in visit.addresses) == 2
        visit.context.close()


def test_who_tries_again_by_keyboard_goes_on_from_the_result(visit: Visit) -> None:
    visit.page.route("**/v1/captions/stream*", lambda route: route.abort())
    visit.choose("dog.jpg", PHOTO)
    visit.problem()
    visit.page.unroute("**/v1/captions/stream*")
    visit.page.locator("#retry").press("Enter")
    assert visit.caption()
    expect(visit.page.locator("#result-title")).to_be_focused()


def test_who_ends_the_waiting_by_keyboard_goes_on_from_the_result(visit: Visit, line: Line) -> None:
    line.is_down, line.retry_after_s = True, 30
    visit.choose("dog.jpg", PHOTO)
    assert re.search(r"Trying again in \d+ s\.", visit.problem())
    line.is_down = False
    visit.page.locator("#retry").press("Enter")
    assert visit.caption()
    expect(visit.page.locator("#result-title")).to_be_focused()


def test_who_enters_a_key_goes_on_from_the_result(browser: Browser, captioner: Captioner) -> None:
    with served(create_app(LocalBackend(captioner), api_keys=("sesame",))) as address:
        visit = Visit(browser, address).open()
        visit.choose("dog.jpg", PHOTO)
        visit.problem()
        visit.page.get_by_label("API key").fill("sesame")
        visit.page.get_by_role("button", name="Use this key").press("Enter")
        assert visit.caption()
        expect(visit.page.locator("#result-title")).to_be_focused()
        visit.context.close()


def test_who_is_at_what_belongs_to_the_last_picture_goes_on_from_the_result(visit: Visit) -> None:
    for place in (".word", "#copy", "#alternatives button"):
        visit.choose("dog.jpg", PHOTO)
        visit.caption()
        visit.page.locator(place).last.focus()
        visit.choose("boat.jpg", PHOTO)
        expect(visit.page.locator("#result-title")).to_be_focused()
        visit.caption()


def test_busy_service_is_asked_again_by_a_browser_of_2023(visit: Visit, line: Line) -> None:
    visit.page.evaluate("() => { delete AbortSignal.any; }")  # Safari has it since 17.4
    line.is_down, line.retry_after_s = True, 2
    visit.choose("dog.jpg", PHOTO)
    assert visit.problem().startswith("The service is busy")
    line.is_down = False
    assert visit.caption()


def test_dropped_folder_is_no_fault_of_the_service(visit: Visit, tmp_path: Path) -> None:
    dropped = {"items": [], "files": [str(tmp_path)], "dragOperationsMask": 1}
    session = visit.context.new_cdp_session(visit.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": dropped})
    assert visit.problem().startswith("This file cannot be read")
    expect(visit.page.locator("#retry")).to_be_hidden()
    visit.choose("dog.jpg", PHOTO)
    assert visit.caption()
