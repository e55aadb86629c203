"""How tests wait for what other processes do."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], seconds: float, explain: Callable[[], str] = str) -> None:
    """Wait until `holds` does; raise AssertionError with the end of the explanation after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain: {explain()[-3000:]}")
        time.sleep(0.1)
