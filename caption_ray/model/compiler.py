"""Compiling the C code of `kernels/`, and what the CPU that is there can do."""

import ctypes
import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-fPIC", "-shared", "-fopenmp")
_X86_FLAGS = ("-mprefer-vector-width=512",)
"""GCC takes half as wide vectors for most CPUs that have them, from the days when these slowed the clock down."""
NATIVE = ("-march=native",)
_TIMEOUT_S = 120

KERNELS = Path(__file__).parent / "kernels"

DEFINITIONS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("BFLOAT16",)}
"""What is defined for a format of numbers; there are libraries for these."""


def sources() -> list[Path]:
    """Return the files that a library is made from."""
    return sorted(path for path in KERNELS.iterdir() if path.suffix in (".c", ".h"))


def digest_of(*parts: bytes) -> str:
    """Return a digest of the sources and of what else a library is made from."""
    read = [part for source in sources() for part in (source.name.encode(), source.read_bytes())]
    return hashlib.sha256(b"\0".join([*parts, *read])).hexdigest()[:32]


def flags_for(processor: Iterable[str], definitions: Iterable[str]) -> list[str]:
    """Return the compiler's flags. processor: those that say for which CPUs."""
    vectors = _X86_FLAGS if platform.machine() == "x86_64" else ()
    return [*_FLAGS, *processor, *vectors, *(f"-D{definition}" for definition in definitions)]


def compile_library(compiler: str, openmp: Path, flags: Iterable[str], library: Path) -> Path:
    """Compile the sources, and return the library.

    Raises OSError and SubprocessError, which has what the compiler said as its `stderr`.
    """
    command = [
        *(compiler, *flags),
        *(str(source) for source in sources() if source.suffix == ".c"),
        # The very library whose threads torch has: a second one would have its own, all waiting for work by spinning.
        *("-Wl,--as-needed", str(openmp), "-o", str(library)),
    ]
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    return library


def version_of(compiler: str) -> bytes:
    """Return what the compiler says that it is. Raises OSError and SubprocessError."""
    return subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_TIMEOUT_S).stdout


def cpu_flags() -> bytes:
    """Return what the CPU can do, as the kernel words it."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def may_use_tiles() -> bool:
    """Ask the kernel for AMX's tiles, which it must grant to a process before the first use; tell whether it did."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # Documentation/arch/x86/xstate.rst
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def openmp_of_torch() -> Path | None:
    """Return the GNU OpenMP library that torch has loaded into this process; None where it has another, or none."""
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.partition("/")[1] + line.partition("/")[2])
        if path.name.startswith("libgomp"):
            return path
    return None
