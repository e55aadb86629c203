"""Which device to compute on, and in which number format."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from caption_ray.config import AskedPrecision, Precision
from caption_ray.errors import UsageError

_FOR_TENSORS = 0.9


def pick_device() -> torch.device:
    """Return the GPU of this process, or the CPU. Raises UsageError where torch cannot compute on the GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_kernels(device)
    return device


def resolve_precision(asked: AskedPrecision, device: torch.device, setting: str = "training.precision") -> Precision:
    """Return the format for `asked`, where 'auto' is bf16 if the hardware computes in it, else fp16 on a GPU.

    Raises UsageError, naming the `setting`, for fp16 on a CPU, which has no use for it.
    """
    if asked == "auto":
        if _has_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise UsageError(f"{setting}: fp16 is for GPUs; use fp32, or bf16 on a CPU that has it")
    return asked


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        # Emulated bf16, which `is_bf16_supported` counts by default, is slower than fp16 (P100, V100).
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # The one probe that torch 2.7 to 2.14 all have.
    return bool(torch.cpu._is_avx512_bf16_supported())


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which a forward pass runs in `precision`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def check_kernels(device: torch.device) -> None:
    """Raise UsageError if the installed torch has no kernels for this GPU, before the first step fails on it."""
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    if not has_kernels(capability, built_for):
        raise UsageError(no_kernels(torch.cuda.get_device_name(device), capability, built_for))


def limit_memory(device: torch.device, share: float) -> None:
    """Have this process take at most its share of a GPU that others compute on too, and fail alone where it wants more.

    A tenth of the share is left for what every process has on a GPU besides its tensors.
    """
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(_FOR_TENSORS * share, device)


def has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Tell whether a torch built for some architectures, as `torch.cuda.get_arch_list` names them, runs on a GPU.

    Machine code (sm_) runs on GPUs of its major version from its minor version on; intermediate code (compute_) is
    translated for any from its version on. An "a" behind a version holds either to it, an "f" to its major version. A
    torch for other GPUs than Nvidia's names none of these, and is taken at its word.
    """
    found = [match.groups() for name in built_for if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name))]
    for kind, major, minor, bound in found:
        version = int(major), int(minor)
        is_like = version == capability if bound == "a" else version[0] == capability[0]
        if version <= capability and (is_like or (kind == "compute" and not bound)):
            return True
    return bool(built_for) and not found


def no_kernels(gpu: str, capability: tuple[int, int], built_for: Sequence[str]) -> str:
    """Return what to say of a GPU that the installed torch has no kernels for."""
    remedy = (
        "for the P100 install with pip install -c slurm/constraints-p100.txt -e ., which slurm/setup_env.sh does"
        if capability < (7, 0)
        else "install a torch that was built for it, or hide it, for the CPU: CUDA_VISIBLE_DEVICES= in the environment"
    )
    return (
        f"{gpu} (sm_{capability[0]}{capability[1]}): torch {torch.__version__} has kernels for "
        f"{', '.join(built_for)} only; {remedy}"
    )
