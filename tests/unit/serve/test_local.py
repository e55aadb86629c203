import asyncio
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from gated import Gated
from live import client_of
from odd_pictures import png
from pydantic import ValidationError

from caption_ray.config import DecodeOptions
from caption_ray.errors import BundleError, UsageError
from caption_ray.inference import Captioner
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, OverloadedError, Square
from caption_ray.serve.engine import BatchRecord
from caption_ray.serve.local import Arguments, LocalBackend, _listening, main
from caption_ray.serve.schemas import Limits


def noise(seed: int) -> Square:
    return np.random.default_rng(seed).integers(0, 256, (3, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def captioner(tiny_bundle: Path) -> Captioner:
    return Captioner.load(str(tiny_bundle), torch.device("cpu"))


def test_many_at_once_get_what_each_would_get_alone(captioner: Captioner) -> None:
    batches: list[int] = []
    backend = LocalBackend(captioner, observe=lambda batch: batches.append(len(batch.answers)))

    async def ask() -> list[list[CaptionedPicture]]:
        return await asyncio.gather(*(backend.caption([noise(seed)], seed % 3 + 1) for seed in range(12)))

    try:
        found = asyncio.run(ask())
    finally:
        backend.close()
    assert sum(batches) == 12
    assert max(batches) > 1
    for seed, (one,) in enumerate(found):
        (alone,) = captioner.caption([noise(seed)], DecodeOptions(beam_width=seed % 3 + 1, max_words=6))
        assert [caption.words for caption in one.captions] == [caption.words for caption in alone]
        assert [caption.log_probability for caption in one.captions] == pytest.approx(
            [caption.log_probability for caption in alone], abs=1e-4
        )


def test_each_step_of_a_stream_is_read_before_the_next_is_computed(gated: Gated) -> None:
    gated.steps = threading.Semaphore(1)
    backend = LocalBackend(gated)
    with client_of(backend) as client, client.stream("POST", "/v1/captions/stream", content=png()) as answer:
        lines, names = answer.iter_lines(), []
        while names[-1:] != ["event: caption"]:
            names += [line for line in (next(lines), next(lines), next(lines)) if line.startswith("event:")]
            assert gated.num_steps == len(names)
            gated.steps.release()
    backend.close()
    assert len(names) >= 2


def test_places_are_bounded_and_given_back(captioner: Captioner) -> None:
    seen: list[BatchRecord] = []
    backend = LocalBackend(captioner, max_queued=4, retry_after_s=3, observe=seen.append)

    async def ask() -> None:
        with pytest.raises(OverloadedError) as caught:
            await backend.caption([noise(0)] * 5, None)
        assert caught.value.retry_after_s == 3
        for _ in range(3):
            done = await asyncio.gather(*(backend.caption([noise(0)], 1) for _ in range(6)), return_exceptions=True)
            assert [isinstance(answer, OverloadedError) for answer in done] == [False] * 4 + [True] * 2
        abandoned = backend.stream(noise(0))
        assert isinstance(await anext(abandoned), GreedyWord)
        with pytest.raises(OverloadedError):
            await backend.caption([noise(0)] * 4, 1)
        await abandoned.aclose()
        assert len(await backend.caption([noise(0)] * 4, 1)) == 4

    try:
        asyncio.run(ask())
    finally:
        backend.close()


def test_a_queue_too_short_for_a_batch_of_the_limits_is_refused() -> None:
    assert Arguments(bundle="b", max_queued=Limits().max_pictures)
    with pytest.raises(ValidationError, match="greater than or equal to 16"):
        Arguments(bundle="b", max_queued=Limits().max_pictures - 1)


def test_it_tells_where_it_listens_and_what_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), _listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert caplog.messages[-1] == f"captions, and a page, at http://127.0.0.1:{port}/"
        with pytest.raises(UsageError, match=f"--port {port}: Address already in use .*choose another, or port 0"):
            _listening("127.0.0.1", port)
    with pytest.raises(UsageError, match=r"--host nowhere\.invalid"):
        _listening("nowhere.invalid", 0)


def test_bundle_is_that_of_the_environment_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_ray.serve.local.configure_access_log", lambda: None)  # that of all tests
    monkeypatch.delenv("CAPTION_RAY_BUNDLE", raising=False)
    with pytest.raises(UsageError, match="name one by --bundle, or by CAPTION_RAY_BUNDLE"):
        main(Arguments())
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "of-the-environment"))
    with pytest.raises(BundleError, match="of-the-environment: no manifest"):
        main(Arguments())
    with pytest.raises(BundleError, match="named: no manifest"):
        main(Arguments(bundle=str(tmp_path / "named")))
