"""The page as people use it, in a real browser, in front of the real app."""

import io
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from browsing import Visit
from PIL import Image, features
from playwright.sync_api import Browser, expect

from caption_ray.inference import Captioner
from caption_ray.serve.example_pictures import FOLDER as EXAMPLES

OpenPage = Callable[..., Visit]


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[OpenPage]:
    """Visits the page; in the end no visit may have complaints, or have asked anyone but the service."""
    visits: list[Visit] = []

    def open_it(at: str = address, **options: object) -> Visit:
        visits.append(Visit(browser, at, **options).open())
        return visits[-1]

    yield open_it
    for visit in visits:
        visit.context.close()
        assert visit.complaints == []
        assert visit.strangers() == []
        assert len(visit.addresses) > 5


@pytest.fixture(scope="module")
def photo() -> bytes:
    return (EXAMPLES / "dog.jpg").read_bytes()


def test_chosen_picture_is_shown_and_captioned(open_page: OpenPage, captioner: Captioner, photo: bytes) -> None:
    visit = open_page()
    visit.choose("dog.jpg", photo)
    best, *others = captioner.caption([captioner.decode_picture(photo)])[0]
    assert visit.caption() == best.text
    sentence = f"{best.text.capitalize()}."
    expect(visit.page.get_by_role("img", name=sentence)).to_be_visible()
    expect(visit.page.locator("#status")).to_contain_text(sentence)
    rows = visit.page.locator("#alternatives button")
    assert [row.split(".")[0] for row in rows.all_text_contents()] == [
        caption.text.capitalize() for caption in (best, *others)
    ]
    weights = np.exp([caption.log_probability for caption in (best, *others)])
    shares = [float(text.split()[0]) for text in visit.page.locator("#alternatives .share").all_text_contents()]
    assert shares == pytest.approx(100 * weights / weights.sum(), abs=0.51)
    for row, caption in zip(rows.all(), (best, *others), strict=True):
        printed = re.search(r"probability ([\d.,]+) %", row.inner_text())
        assert printed
        assert float(printed[1]) == pytest.approx(100 * np.exp(caption.log_probability), rel=0.06)
    assert f"log-probability {best.log_probability:.2f}" in (rows.first.get_attribute("title") or "")
    assert visit.failed_answers == 0


def test_words_come_one_by_one(open_page: OpenPage, photo: bytes) -> None:
    visit = open_page(motion=True)
    visit.page.evaluate("""() => {
        window.seen = [];
        const caption = document.getElementById("caption");
        new MutationObserver(() => window.seen.push(caption.querySelectorAll(".word").length))
            .observe(caption, { childList: true });
    }""")
    visit.choose("dog.jpg", photo)
    num_words = len(visit.caption().split())
    assert num_words > 2
    assert [count for count in visit.page.evaluate("window.seen") if count][:num_words] == [*range(1, num_words + 1)]


def test_word_shows_where_the_model_looked(open_page: OpenPage, captioner: Captioner, photo: bytes) -> None:
    visit = open_page()
    visit.choose("dog.jpg", photo)
    visit.caption()
    attention = captioner.caption([captioner.decode_picture(photo)])[0][0].attention
    bare = np.array(visit.overlay())
    assert not bare.any()
    seen = []
    for index in (0, 1):
        visit.page.locator(".word").nth(index).hover()
        seen.append(np.array(visit.overlay()))
        assert np.corrcoef(seen[-1].ravel(), attention[index].ravel())[0, 1] > 0.8
        assert f"brightest {100 * attention[index].max():.0f} %" in visit.page.locator("#where").inner_text()
    assert np.abs(seen[0] - seen[1]).max() > 10
    visit.page.mouse.move(5, 5)
    assert not np.array(visit.overlay()).any()


def test_another_caption_of_the_beam_can_be_chosen(open_page: OpenPage, photo: bytes) -> None:
    visit = open_page()
    visit.choose("dog.jpg", photo)
    first = visit.caption()
    visit.page.locator("#alternatives button").nth(1).click()
    assert visit.caption() != first
    expect(visit.page.locator("#alternatives button").nth(1)).to_have_attribute("aria-pressed", "true")


def test_another_caption_is_shown_without_the_light_of_a_word_of_the_last(open_page: OpenPage, photo: bytes) -> None:
    visit = open_page()
    visit.choose("dog.jpg", photo)
    visit.caption()
    visit.page.locator(".word").first.click()  # which pins it
    assert np.array(visit.overlay()).any()
    visit.page.locator("#alternatives button").nth(1).click()
    visit.caption()
    expect(visit.page.locator(".word[aria-pressed=true]")).to_have_count(0)
    assert not np.array(visit.overlay()).any()


def test_who_is_at_a_word_by_keyboard_stays_there_when_the_caption_changes(open_page: OpenPage, photo: bytes) -> None:
    visit = open_page()
    visit.choose("dog.jpg", photo)
    visit.caption()
    visit.page.locator(".word").first.focus()
    visit.page.keyboard.press("ArrowRight")
    for words, place in ((["one", "two", "three"], 1), (["alone"], 0)):
        visit.page.evaluate(
            """async (words) => {
                const view = await import("/static/view.js");
                view.showCaption({ words: words.map((text) => ({ text })) });
            }""",
            words,
        )
        expect(visit.page.locator(".word")).to_have_text(words)
        expect(visit.page.locator(".word").nth(place)).to_be_focused()
        expect(visit.page.locator(".word").nth(place)).to_have_attribute("tabindex", "0")


@pytest.mark.parametrize(
    ("event", "field"), [("new ClipboardEvent('paste'", "clipboardData"), ("new DragEvent('drop'", "dataTransfer")]
)
def test_pasted_or_dropped_picture_is_captioned(event: str, field: str, open_page: OpenPage, photo: bytes) -> None:
    visit = open_page()
    visit.page.evaluate(
        f"""(bytes) => {{
            const {field} = new DataTransfer();
            {field}.items.add(new File([new Uint8Array(bytes)], "dog.jpg", {{ type: "image/jpeg" }}));
            document.body.dispatchEvent({event}, {{ {field}, bubbles: true, cancelable: true }}));
        }}""",
        list(photo),
    )
    assert visit.caption()


def test_examples_are_captioned(open_page: OpenPage) -> None:
    visit = open_page()
    for button in visit.page.locator("[data-example]").all():
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        assert visit.caption()
    assert visit.page.locator("[data-example]").count() == 6


def test_caption_is_copied(browser: Browser, address: str, photo: bytes) -> None:
    visit = Visit(browser, address, permissions=["clipboard-read", "clipboard-write"]).open()
    visit.choose("dog.jpg", photo)
    caption = visit.caption()
    visit.page.get_by_role("button", name="Copy caption").click()
    expect(visit.page.locator("#copy")).to_have_text("Copied")
    assert visit.page.evaluate("navigator.clipboard.readText()") == f"{caption.capitalize()}."
    visit.context.close()


def test_keyboard_alone_is_enough(open_page: OpenPage, photo: bytes) -> None:
    visit = open_page()
    page = visit.page
    focused = page.locator(":focus-visible")
    with page.expect_file_chooser() as chooser:  # asked for early: Chromium is told so without waiting for its answer
        for _ in range(3):  # past the name and the link
            page.keyboard.press("Tab")
        expect(focused).to_have_text("Choose a picture")
        assert focused.evaluate("element => getComputedStyle(element).outlineWidth") == "3px"
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "dog.jpg", "mimeType": "image/jpeg", "buffer": photo})
    first, second, *_ = visit.caption().split()
    page.keyboard.press("Tab")
    assert (focused.text_content(), np.array(visit.overlay()).any()) == (first, True)
    page.keyboard.press("ArrowRight")
    assert focused.text_content() == second
    page.keyboard.press("Tab")  # all words are one stop, where one goes on when one comes back
    expect(focused).to_have_text("Copy caption")
    page.keyboard.press("Shift+Tab")
    assert focused.text_content() == second
    page.keyboard.press("Enter")
    expect(focused).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(focused).to_have_text("Choose a picture")
    expect(page.locator("#result")).to_be_hidden()


def test_large_photo_is_scaled_down_first(open_page: OpenPage) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1900, 2100, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "BMP")
    visit = open_page()
    visit.choose("noise.bmp", file.getvalue(), "image/bmp")
    assert visit.caption()
    assert visit.page.locator("#note").inner_text().startswith("Scaled down from 11.4 MB to ")
    assert visit.failed_answers == 0


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_kind_that_only_the_browser_reads_is_sent_as_a_jpeg(open_page: OpenPage, photo: bytes) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).save(file, "AVIF")
    visit = open_page()
    visit.choose("dog.avif", file.getvalue(), "image/avif")
    assert visit.caption()
    expect(visit.page.locator("#note")).to_have_text(re.compile("^Sent as a JPEG"))
    expect(visit.page.locator("#others")).to_be_visible()


def test_variant_that_only_the_browser_reads_is_sent_as_a_jpeg(open_page: OpenPage) -> None:
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "BMP")
    data = file.getvalue()
    start = int.from_bytes(data[10:14], "little")
    run_length_encoded = data[:30] + b"\1\0\0\0" + data[34:start] + b"\x40\xc8\0\0" * 64 + b"\0\1"
    visit = open_page()
    visit.choose("old.bmp", run_length_encoded, "image/bmp")
    assert visit.caption()
    expect(visit.page.locator("#note")).to_have_text(re.compile("^Sent as a JPEG"))


def test_accessible_names_and_landmarks(open_page: OpenPage, photo: bytes) -> None:
    visit = open_page()
    visit.choose("dog.jpg", photo)
    visit.caption()
    nodes = visit.context.new_cdp_session(visit.page).send("Accessibility.getFullAXTree")["nodes"]
    known = [node for node in nodes if not node["ignored"]]
    names = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in known]
    wanted = {"button", "link", "image", "textbox", "heading", "region", "figure", "list"}
    assert [role for role, name in names if role in wanted - {"figure", "list"} and not name] == []
    assert {"banner", "main", "contentinfo", "status"} <= {role for role, _ in names}
    assert sum(role == "button" for role, _ in names) > 10
    assert "looked at: " in (visit.page.locator(".word").first.get_attribute("aria-description") or "")


def test_model_and_its_limits_are_told(open_page: OpenPage) -> None:
    page = open_page().page
    expect(page.locator("#model")).to_contain_text("Model sharp · resnet18 · ")
    expect(page.locator("#model")).to_contain_text("11 words · BLEU-4 0.125, CIDEr 0.500 on unseen pictures")
    expect(page.locator("footer")).to_contain_text("Decide nothing about a person by them.")
    page.locator("footer").get_by_role("link", name="Documentation of the API").click()
    expect(page).to_have_url(re.compile("/docs$"))
