"""What a worker does before it trains; the rest takes workers (tests/integration)."""

import pytest
import ray.train.collective
import torch

from caption_ray.errors import RunError, UsageError
from caption_ray.train import loop

CPU = torch.device("cpu")
NO_KERNELS = "P100 (sm_60): torch has kernels for sm_90 only"


@pytest.mark.parametrize(
    ("own", "firsts", "raised"),
    [
        (None, None, None),
        (NO_KERNELS, NO_KERNELS, UsageError),
        (None, NO_KERNELS, UsageError),  # all end alike, those too that could compute
        (NO_KERNELS, None, RunError),
    ],
)
def test_gpu_without_kernels_leaves_no_worker_waiting(
    own: str | None, firsts: str | None, raised: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(_: torch.device) -> None:
        if own is not None:
            raise UsageError(own)

    told: list[object] = []
    monkeypatch.setattr(loop, "check_kernels", check)
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda value: (told.append(value), firsts)[1])
    if raised is None:
        loop._check_kernels(CPU, 2)
    else:
        with pytest.raises(raised, match="sm_60"):
            loop._check_kernels(CPU, 2)
    assert told == [own]


def test_lone_worker_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray.train.collective, "broadcast_from_rank_zero")
    loop._check_kernels(CPU, 1)
