import time

import pytest
from commands import QuickStart, run


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> QuickStart:
    """Run the quick start once, with its defaults; its files are not to be changed."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    started = time.monotonic()
    done = run("quickstart.py", "--output", str(folder))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-3000:]
    return QuickStart(folder=folder, stdout=done.stdout, stderr=done.stderr, seconds=seconds)
