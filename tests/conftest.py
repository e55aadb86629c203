import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A deadline would fail tests on a busy machine.
settings.register_profile("caption_ray", deadline=None)
settings.load_profile("caption_ray")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread, in child processes too: tensors are tiny, and threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        if "OMP_NUM_THREADS" not in os.environ:
            patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)
