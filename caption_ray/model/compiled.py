"""The C code of `kernels/`, compiled where it runs, by the compiler that is there.

It is never needed: what calls it has torch's operations to fall back on, which also serve GPUs. The library is kept in
the user's cache folder, under a digest of all that it was made from. CAPTION_RAY_KERNEL=off turns it off.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "kernels"
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-fPIC", "-shared", "-fopenmp")
_X86_FLAGS = ("-mprefer-vector-width=512",)
"""GCC takes half as wide vectors for most CPUs that have them, from the days when these slowed the clock down."""
_TIMEOUT_S = 120
_MULTIPLE = 32
_DEFINITIONS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("BFLOAT16",)}


def switched_off() -> bool:
    """Tell whether the user wants none of it."""
    return os.environ.get("CAPTION_RAY_KERNEL", "").lower() in ("off", "0")


def library_for(values: torch.Tensor, *sizes: int) -> ctypes.CDLL | None:
    """Return the library for numbers of the format of `values`, or None where torch's operations must do.

    sizes: of the vectors that are gone over, which must be multiples of `_MULTIPLE`.
    """
    definitions = _DEFINITIONS.get(values.dtype)
    if values.device.type != "cpu" or definitions is None or switched_off():
        return None
    return None if any(size % _MULTIPLE for size in sizes) else load(*definitions)


def call(
    function: Any,
    kind: type[ctypes.Structure],
    numbers: Mapping[str, float],
    tensors: Mapping[str, torch.Tensor | None],
) -> None:
    """Call a function of the library with a structure of numbers, of pointers to tensors, and of the threads to have.

    What is None is left out, a null pointer. Tensors must be as the function reads them, without gaps.
    """
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
    function(ctypes.byref(kind(threads=torch.get_num_threads(), **numbers, **pointers)))


@functools.cache
def load(*definitions: str) -> ctypes.CDLL | None:
    """Return the library compiled with these `-D` definitions, or None, having logged why, where there cannot be one.

    The first call on a machine takes a second or two.
    """
    openmp = _openmp_of_torch()
    compiler = shutil.which("gcc")
    if openmp is None or compiler is None:
        missing = "no gcc" if compiler is None else "no GNU OpenMP in torch"
        logger.info("the decoder goes by torch's operations, slower than by compiled ones: %s", missing)
        return None
    try:
        return _load(compiler, openmp, definitions)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.info("the decoder goes by torch's operations, slower than by compiled ones: %s", said.strip()[-500:])
        return None


def _load(compiler: str, openmp: Path, definitions: tuple[str, ...]) -> ctypes.CDLL:
    sources = sorted(_SOURCES.iterdir())
    flags = [*_FLAGS, *(_X86_FLAGS if platform.machine() == "x86_64" else ())]
    flags += [f"-D{definition}" for definition in (*definitions, *(("TILES",) if _may_use_tiles() else ()))]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_TIMEOUT_S).stdout
    made_from = [version, _cpu_flags(), *(repr(part).encode() for part in (compiler, openmp, flags))]
    made_from += [part for source in sources for part in (source.name.encode(), source.read_bytes())]
    name = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:32] + ".so"
    command = [
        *(compiler, *flags),
        *(str(source) for source in sources if source.suffix == ".c"),
        # The very library whose threads torch has: a second one would have its own, all waiting for work by spinning.
        *("-Wl,--as-needed", str(openmp), "-o"),
    ]
    kept = _cache_folder() / name
    try:
        return ctypes.CDLL(str(kept))
    except OSError:  # not there, or spoilt
        pass
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            made = _compile(command, Path(folder))
            made.replace(kept)  # at once: many workers may start together
        return ctypes.CDLL(str(kept))
    except OSError:  # a home that cannot be written to: compiled for this process alone
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(_compile(command, Path(folder))))


def _compile(command: list[str], folder: Path) -> Path:
    made = folder / "library.so"
    subprocess.run([*command, str(made)], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    return made


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caption_ray"


def _cpu_flags() -> bytes:
    """Return what the CPU can do: homes are shared by machines that differ."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def _may_use_tiles() -> bool:
    """Ask the kernel for AMX's tiles, which it must grant to a process before the first use; tell whether it did."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # Documentation/arch/x86/xstate.rst
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def _openmp_of_torch() -> Path | None:
    """Return the GNU OpenMP library that torch has loaded into this process; None where it has another, or none."""
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.partition("/")[1] + line.partition("/")[2])
        if path.name.startswith("libgomp"):
            return path
    return None
