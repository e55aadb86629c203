from pathlib import Path

import pytest
import torch

from caption_ray.device import autocast, check_kernels, resolve_precision
from caption_ray.errors import UsageError

CPU = torch.device("cpu")
CPU_INFO = Path("/proc/cpuinfo")


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_given(asked: str) -> None:
    assert resolve_precision(asked, CPU) == asked


@pytest.mark.skipif(not CPU_INFO.exists(), reason="needs Linux's list of CPU flags")
def test_auto_follows_the_cpus_flags() -> None:
    expected = "bf16" if "avx512_bf16" in CPU_INFO.read_text() else "fp32"
    assert resolve_precision("auto", CPU) == expected


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"training\.precision: fp16 is for GPUs"):
        resolve_precision("fp16", CPU)
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"


def test_autocast_computes_in_the_format() -> None:
    layer, entry = torch.nn.Linear(2, 3), torch.ones(1, 2)
    with autocast("bf16", CPU):
        assert layer(entry).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert layer(entry).dtype == torch.float32


def test_a_cpu_has_its_kernels() -> None:
    check_kernels(CPU)
