"""What the page says when something is wrong, and how it looks on a phone and in the dark."""

import io
import re
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from browsing import Visit, served
from PIL import Image
from playwright.sync_api import Browser, expect

from caption_ray.inference import Captioner
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord, OverloadedError, Square
from caption_ray.serve.example_pictures import FOLDER as EXAMPLES
from caption_ray.serve.example_pictures import draw_examples
from caption_ray.serve.local import LocalBackend
from caption_ray.serve.schemas import Limits, ModelAnswer

PHOTO = (EXAMPLES / "dog.jpg").read_bytes()
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
# Each text's contrast with what lies behind it (WCAG 2.2, 1.4.3), by the browser's own computed colours.
CONTRASTS = """() => {
    const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
        .getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = rgba(getComputedStyle(element).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255, 255];
    };
    const luminance = (colour) => colour.slice(0, 3)
        .map((value) => value / 255)
        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
        && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    return texts.map((element) => {
        const pair = [rgba(getComputedStyle(element).color), behind(element)].map(luminance).sort((a, b) => b - a);
        return [element.textContent.trim().slice(0, 40), (pair[0] + 0.05) / (pair[1] + 0.05)];
    });
}"""


class BusyAtFirst:
    """A backend whose first stream ends with an error, after some words."""

    def __init__(self, backend: LocalBackend, error: Exception, num_words: int) -> None:
        self._backend, self._error, self._num_words = backend, [error], num_words

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        return await self._backend.caption(pictures, beam_width)

    async def stream(self, picture: Square) -> AsyncIterator[GreedyWord | CaptionedPicture]:
        if self._error:
            for _ in range(self._num_words):
                yield GreedyWord(text="ball", log_probability=-1.0, attention=np.full((7, 7), 1 / 49, np.float32))
            raise self._error.pop()
        async for item in self._backend.stream(picture):
            yield item

    async def model(self) -> ModelAnswer:
        return await self._backend.model()


@pytest.mark.parametrize(
    ("name", "kind", "content", "title"),
    [
        ("cut.jpg", "image/jpeg", PHOTO[:3000], "This picture cannot be read"),
        ("noise.jpg", "image/jpeg", b"no picture at all", "That is not a picture"),
        ("photo.heic", "image/heic", b"\0\0\0\x18ftypheic" + bytes(99), "This kind of picture is not read here"),
        ("photo.HEIC", "", b"\0\0\0\x18ftypheic" + bytes(99), "This kind of picture is not read here"),
        ("notes.pdf", "application/pdf", b"%PDF-1.7", "That is not a picture"),
        ("huge.jpg", "image/jpeg", bytes(11 << 20), "The file is too large\n\nAt most 10 MB are taken."),
    ],
)
def test_bad_file_is_answered_in_words(
    browser: Browser, address: str, name: str, kind: str, content: bytes, title: str
) -> None:
    visit = Visit(browser, address).open()
    visit.choose(name, content, kind)
    assert visit.problem().startswith(title)
    expect(visit.page.get_by_role("alert")).to_contain_text(title.split("\n")[0])
    expect(visit.page.locator("#retry")).to_be_hidden()
    visit.choose("dog.jpg", PHOTO)
    assert visit.caption()
    expect(visit.page.locator("#problem")).to_be_hidden()
    assert visit.complaints == []


def test_drop_without_a_file_is_told_to_all(browser: Browser, address: str) -> None:
    visit = Visit(browser, address).open()
    event = "new DragEvent('drop', { bubbles: true, dataTransfer: new DataTransfer() })"
    visit.page.evaluate(f"() => document.body.dispatchEvent({event})")
    expect(visit.page.locator("#warning")).to_have_text(re.compile("^That was no file"))
    expect(visit.page.locator("#status")).to_have_text(re.compile("^That was no file"))
    visit.choose("dog.jpg", PHOTO)
    assert visit.caption()
    expect(visit.page.locator("#warning")).to_be_hidden()


@pytest.mark.parametrize(("error", "num_words"), [(OverloadedError(2), 0), (BackendUnavailableError("died"), 3)])
def test_busy_service_is_asked_again_by_itself(
    browser: Browser, captioner: Captioner, error: Exception, num_words: int
) -> None:
    with served(create_app(BusyAtFirst(LocalBackend(captioner), error, num_words))) as address:
        visit = Visit(browser, address).open()
        visit.choose("dog.jpg", PHOTO)
        message = visit.problem()
        assert message.startswith("The service is busy")
        assert "Trying again in 2 s." in message
        assert visit.caption()
        expect(visit.page.locator("#problem")).to_be_hidden()
        visit.context.close()


def test_page_knows_how_much_the_service_takes(browser: Browser, captioner: Captioner) -> None:
    with served(create_app(LocalBackend(captioner), Limits(max_bytes=20 << 10))) as address:
        visit = Visit(browser, address).open()
        visit.choose("huge.jpg", bytes(21 << 10))
        assert visit.problem().startswith("The file is too large\n\nAt most 20 kB are taken.")
        noise = np.random.default_rng(0).integers(0, 255, (500, 600, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        visit.choose("noise.png", file.getvalue(), "image/png")
        assert visit.caption()
        assert visit.page.locator("#note").inner_text().startswith("Scaled down from 881 kB to ")
        assert (visit.failed_answers, visit.complaints) == (0, [])
        visit.context.close()


def test_answer_to_a_body_that_is_stopped_amid_is_read(browser: Browser, captioner: Captioner) -> None:
    """As where the service has been started anew, with another limit, since the page was loaded."""
    with served(create_app(LocalBackend(captioner), Limits(max_bytes=100_000))) as address:
        visit = Visit(browser, address).open()
        for path in ("v1/captions", "v1/captions/stream", "v1/captions?beam_width=0"):
            status = visit.page.evaluate(
                "path => fetch(path, { method: 'POST', body: new Uint8Array(12e6) }).then(({ status }) => status)", path
            )
            assert status == (400 if "?" in path else 413)
        visit.context.close()


def test_key_is_asked_for_and_kept_in_the_tab(browser: Browser, captioner: Captioner) -> None:
    with served(create_app(LocalBackend(captioner), api_keys=("open sesame",))) as address:
        visit = Visit(browser, address).open()
        expect(visit.page.locator("#model")).to_have_text("The model is told to those who have an API key.")
        visit.choose("dog.jpg", PHOTO)
        assert visit.problem().startswith("This service asks for a key")
        visit.page.get_by_label("API key").fill("open sesame")
        visit.page.keyboard.press("Enter")
        assert visit.caption()
        expect(visit.page.locator("#model")).to_contain_text("Model sharp")
        visit.page.reload()
        visit.choose("dog.jpg", PHOTO)
        assert visit.caption()
        assert not any("sesame" in url for url in visit.addresses)
        visit.context.close()


def test_wrong_keys_are_said_to_be_wrong_and_others_can_be_entered(browser: Browser, captioner: Captioner) -> None:
    with served(create_app(LocalBackend(captioner), api_keys=("sesame",))) as address:
        visit = Visit(browser, address).open()
        visit.choose("dog.jpg", PHOTO)
        assert visit.problem().startswith("This service asks for a key")
        visit.page.get_by_label("API key").fill("sésamé‐")  # what no header can carry is not sent at all
        visit.page.keyboard.press("Enter")
        assert visit.page.get_by_label("API key").evaluate("input => input.validity.patternMismatch")
        visit.page.get_by_label("API key").fill("barley")
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("#problem-title")).to_have_text("That key is not known")
        visit.page.get_by_label("API key").fill("sesame")
        visit.page.keyboard.press("Enter")
        assert visit.caption()
        visit.context.close()


def test_too_many_pixels_of_a_kind_that_browsers_do_not_read(browser: Browser, captioner: Captioner) -> None:
    file = io.BytesIO()
    Image.new("RGB", (120, 100)).save(file, "TIFF")
    with served(create_app(LocalBackend(captioner), Limits(max_pixels=10_000))) as address:
        visit = Visit(browser, address).open()
        visit.choose("wide.tiff", file.getvalue(), "image/tiff")
        assert visit.problem().splitlines() == [
            "The picture has too many pixels",
            "",
            "At most 0.01 megapixels are taken.",
        ]
        visit.context.close()


def test_offline_goes_on_when_the_connection_is_back(browser: Browser, address: str) -> None:
    visit = Visit(browser, address).open()
    expect(visit.page.locator("#model")).to_contain_text("Model")
    visit.context.set_offline(True)
    visit.choose("dog.jpg", PHOTO)
    assert visit.problem().startswith("You are offline")
    visit.context.set_offline(False)
    assert visit.caption()


def test_phone_needs_no_sideways_scrolling(browser: Browser, address: str) -> None:
    visit = Visit(browser, address, **PHONE).open()
    width = "document.documentElement.scrollWidth"
    expect(visit.page.get_by_role("button", name="Take a photo")).to_be_visible()
    assert visit.page.locator("#photo").get_attribute("capture") == "environment"
    assert visit.page.evaluate(width) == 360
    visit.choose("dog.jpg", PHOTO)
    visit.caption()
    assert visit.page.evaluate(width) == 360
    word = visit.page.locator(".word").nth(1)
    word.tap()
    assert np.array(visit.overlay()).any()
    word.tap()
    assert not np.array(visit.overlay()).any()
    visit.choose("notes.pdf", b"%PDF", "application/pdf")
    visit.problem()
    assert visit.page.evaluate(width) == 360


@pytest.mark.parametrize("width", [280, 320, 360, 420, 480, 560, 700])
def test_word_stays_under_the_pointer_in_a_narrow_window(browser: Browser, address: str, width: int) -> None:
    visit = Visit(browser, address, viewport={"width": width, "height": 740}).open()
    visit.choose("dog.jpg", PHOTO)
    visit.caption()
    word = visit.page.locator(".word").nth(1)
    place = word.bounding_box()
    word.click()
    assert word.bounding_box() == place
    expect(word).to_have_attribute("aria-pressed", "true")
    assert np.array(visit.overlay()).any()
    visit.context.close()


@pytest.mark.parametrize(("scheme", "forced"), [("light", "none"), ("dark", "none"), ("dark", "active")])
def test_every_text_has_contrast(browser: Browser, address: str, scheme: str, forced: str) -> None:
    visit = Visit(browser, address, color_scheme=scheme, forced_colors=forced).open()
    expect(visit.page.locator("#model")).to_contain_text("Model")
    found = visit.page.evaluate(CONTRASTS)
    visit.choose("dog.jpg", PHOTO)
    visit.caption()
    visit.page.locator(".word").first.hover()
    found += visit.page.evaluate(CONTRASTS)
    visit.choose("cut.jpg", PHOTO[:3000])
    visit.problem()
    found += visit.page.evaluate(CONTRASTS)
    assert {text: ratio for text, ratio in found if ratio < 4.5} == {}
    assert len(found) > 40
    background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(22, 20, 18)") == (scheme == "dark" and forced == "none")


def test_documentation_fits_the_narrowest_width(browser: Browser, address: str) -> None:
    """320 pixels are also what is left of a screen of 1280 at 400 % (WCAG 2.2, 1.4.10)."""
    visit = Visit(browser, address, viewport={"width": 320, "height": 560}).open()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 320
    visit.page.goto(f"{address}/docs")
    for details in visit.page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 320
    assert (visit.complaints, visit.failed_answers) == ([], 0)
    visit.context.close()


def test_examples_are_what_their_command_draws() -> None:
    drawn = draw_examples()
    assert sorted(drawn) == sorted(path.name for path in EXAMPLES.iterdir())
    for name, picture in drawn.items():
        content = (EXAMPLES / name).read_bytes()
        kept = np.asarray(Image.open(io.BytesIO(content)), dtype=float)
        assert np.abs(kept - np.asarray(picture, dtype=float)).mean() < 6
        assert len(content) < 12_000
