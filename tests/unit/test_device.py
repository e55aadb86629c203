import re
from pathlib import Path

import pytest
import torch

from caption_ray.device import autocast, check_kernels, has_kernels, limit_memory, no_kernels, resolve_precision
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


def test_memory_of_a_gpu_is_limited_to_nine_tenths_of_a_share_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: asked.append(given))
    gpu = torch.device("cuda")
    for device, share in ((gpu, 0.25), (gpu, 1.0), (CPU, 0.5)):
        limit_memory(device, share)
    assert asked == [(pytest.approx(0.225), gpu)]


TORCH_2_7 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
TORCH_2_14 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built_for", "answer"),
    [
        ((6, 0), TORCH_2_7, True),
        ((6, 0), TORCH_2_14, False),
        ((6, 1), TORCH_2_7, True),  # a later minor version of sm_60
        ((8, 9), TORCH_2_14, True),
        ((7, 0), TORCH_2_14, False),  # an earlier one than sm_75
        ((10, 0), ["sm_90a", "sm_100a"], True),
        ((11, 0), TORCH_2_14, False),
        ((11, 0), [*TORCH_2_14, "compute_100"], True),
        ((9, 0), ["compute_100"], False),
        ((6, 0), [], False),
        ((10, 0), ["compute_90a"], False),  # an "a" holds to its version
        ((9, 0), ["compute_90a"], True),
        ((10, 3), ["sm_100f"], True),  # an "f" to its family
        ((12, 0), ["compute_100f"], False),
        ((9, 0), ["gfx90a"], True),  # no GPU of Nvidia's
    ],
)
def test_kernels_by_hand(capability: tuple[int, int], built_for: list[str], answer: bool) -> None:
    assert has_kernels(capability, built_for) is answer


def test_a_gpu_without_kernels_is_told_which_file_to_install_with() -> None:
    message = no_kernels("Tesla P100-PCIE-16GB", (6, 0), TORCH_2_14)
    assert message.startswith("Tesla P100-PCIE-16GB (sm_60): torch ")
    (named,) = re.findall(r"-c (\S+)", message)
    assert (Path(__file__).parents[2] / named).read_text().splitlines()[-2:] == ["torch==2.7.1", "torchvision==0.22.1"]
    assert "constraints" not in no_kernels("GPU of tomorrow", (11, 0), TORCH_2_14)
