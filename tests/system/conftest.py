import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from commands import QuickStart, run

from caption_ray.inference import Captioner
from caption_ray.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> QuickStart:
    """Run the quick start once, with its defaults; its files are not to be changed."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    started = time.monotonic()
    done = run("quickstart.py", "--output", str(folder))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-3000:]
    return QuickStart(folder=folder, stdout=done.stdout, stderr=done.stderr, seconds=seconds)


@pytest.fixture(scope="session")
def captioner(tiny_vocabulary: Vocabulary) -> Captioner:
    """An untrained model with attention that can be told apart."""
    from sharp_model import sharp_captioner

    return sharp_captioner(tiny_vocabulary)


@pytest.fixture(scope="module")
def address(captioner: Captioner) -> Iterator[str]:
    """The app, served."""
    from browsing import served

    from caption_ray.serve.app import create_app
    from caption_ray.serve.local import LocalBackend

    with served(create_app(LocalBackend(captioner))) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A browser; not for the whole session, since its event loop holds the thread's place."""
    from browsing import launch
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch(playwright.chromium)
        yield browser
        browser.close()
