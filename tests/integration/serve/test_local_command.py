"""`python -m caption_ray.serve.local`, the service without Ray, as a process of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from serving import ROOT


def test_command_serves_and_ends_at_a_signal(tiny_bundle: Path, picture: bytes) -> None:
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
                assert client.post("/v1/captions", content=picture).status_code == 200
                assert httpx.get(f"http://127.0.0.1:{port}/v1/model").status_code == 401
                with contextlib.suppress(httpx.TransportError):  # closed while it was sending
                    assert client.get("/healthz", headers={"X-Long": "x" * 1_000_000}).status_code == 400
                assert client.get("/readyz").status_code == 200
        finally:
            server.send_signal(signal.SIGTERM)
            _, log = server.communicate(timeout=30)
    lines = [json.loads(line) for line in log.decode().splitlines() if line.startswith("{")]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/readyz", 200), ("/v1/captions", 200), ("/v1/model", 401), ("/readyz", 200)
    ]  # fmt: skip
    assert "Zyxwv" not in log.decode()
