import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from odd_pictures import png

from caption_ray.config import DecodeOptions
from caption_ray.inference import Captioner
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, OverloadedError, Square
from caption_ray.serve.engine import BatchRecord
from caption_ray.serve.local import LocalBackend

ROOT = Path(__file__).parents[3]


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


def test_command_serves_and_ends_at_a_signal(tiny_bundle: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "caption_ray.serve.local", "--bundle", str(tiny_bundle), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CAPTION_RAY_API_KEYS": "Zyxwv"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": "Zyxwv"}) as client:
                end = time.monotonic() + 60
                while True:
                    try:
                        assert client.get("/readyz").status_code == 200
                        break
                    except httpx.ConnectError:
                        assert time.monotonic() < end
                        time.sleep(0.1)
                assert client.post("/v1/captions", content=png()).status_code == 200
                assert httpx.get(f"http://127.0.0.1:{port}/v1/model").status_code == 401
        finally:
            server.send_signal(signal.SIGTERM)
            _, log = server.communicate(timeout=30)
    lines = [json.loads(line) for line in log.decode().splitlines() if line.startswith("{")]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/readyz", 200), ("/v1/captions", 200), ("/v1/model", 401)
    ]  # fmt: skip
    assert "Zyxwv" not in log.decode()
