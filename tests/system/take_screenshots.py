"""The README's pictures of the page: `python tests/system/take_screenshots.py runs/quickstart/bundle`.

The bundle is that of a quick start with `--num-pictures 2400`. Taken in Debian's Chromium with the package
fonts-noto-core, and written to .github/images.
"""

import sys
from pathlib import Path

from browsing import Visit, launch, served
from PIL import Image
from playwright.sync_api import sync_playwright

from caption_ray.inference import Captioner
from caption_ray.serve.app import create_app
from caption_ray.serve.local import LocalBackend

FOLDER = Path(__file__).parents[2] / ".github" / "images"
DESKTOP = {"viewport": {"width": 1120, "height": 720}}
PHONE = {"viewport": {"width": 360, "height": 720}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
MAX_BYTES = 150_000


def take_screenshots(bundle: str) -> None:
    """Show a caption in the light, one in the dark, and one on a phone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    backend = LocalBackend(Captioner.load(bundle))
    with served(create_app(backend)) as address, sync_playwright() as playwright:
        browser = launch(playwright.chromium)
        for name, example, word, options in (
            ("page-caption", "shapes-4.jpg", "red", DESKTOP),
            ("page-dark", "shapes-2.jpg", "diamond", {**DESKTOP, "color_scheme": "dark"}),
            ("page-phone", "shapes-4.jpg", "red", PHONE),
        ):
            visit = Visit(browser, address, **options).open()
            visit.page.locator(f"[data-example='{example}']").click()
            visit.caption()
            visit.page.locator(".word", has_text=word).first.click()
            keep(visit, name)
        browser.close()


def keep(visit: Visit, name: str) -> None:
    """Write what is seen now, as a WebP file that a README can carry."""
    taken = FOLDER / f"{name}.png"
    visit.page.screenshot(path=taken)
    Image.open(taken).convert("RGB").save(FOLDER / f"{name}.webp", quality=88, method=6)
    taken.unlink()
    size = (FOLDER / f"{name}.webp").stat().st_size
    assert size <= MAX_BYTES, f"{name} has {size} bytes, over {MAX_BYTES}"


if __name__ == "__main__":
    take_screenshots(sys.argv[1])
