"""Libraries of `kernels/` that are compiled beforehand, where there is a compiler, for machines that have none.

`python -m caption_ray.model.portable` makes one for each kind of CPU below, and each format of numbers, beside the
sources. The container image has them, and no compiler.
"""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caption_ray.model import compiler

FOLDER = compiler.KERNELS / "portable"


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of CPU. needs: what Linux calls the instructions that GCC may take by these flags."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]

    @property
    def has_tiles(self) -> bool:
        """Whether the kernel must grant AMX's tiles to the process."""
        return "amx_tile" in self.needs

    def flags_for(self, definitions: Sequence[str]) -> list[str]:
        """Return the compiler's flags."""
        return compiler.flags_for(self.flags, (*definitions, *(("TILES",) if self.has_tiles else ())))

    def library(self, definitions: Sequence[str]) -> Path:
        """Return where the library is: under a name that one of other sources or by other flags does not have."""
        digest = compiler.digest_of(" ".join(self.flags_for(definitions)).encode())
        return FOLDER / f"{'-'.join((self.name, *definitions, digest))}.so"


_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_BF16 = _V4 | {"avx512_bf16"}

TARGETS = (
    Target(
        "amx",
        ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        _BF16 | {"amx_tile", "amx_bf16"},
    ),
    Target("avx512bf16", ("-march=x86-64-v4", "-mavx512bf16"), _BF16),
    Target("avx512", ("-march=x86-64-v4",), _V4),
    Target("avx2", ("-march=x86-64-v3",), _V3),
)
"""Best first."""


def find(definitions: Sequence[str]) -> Path | None:
    """Return the library for the best kind that this machine is of, None where none was made for it."""
    if platform.machine() != "x86_64" or not FOLDER.is_dir():
        return None
    flags = set(compiler.cpu_flags().decode().split())
    for target in TARGETS:
        if not target.needs <= flags or (target.has_tiles and not compiler.may_use_tiles()):
            continue
        if (library := target.library(definitions)).exists():
            return library
    return None


def compile_all() -> list[Path]:
    """Compile the libraries of all kinds and formats, and return them; on other processors than x86-64 there are none.

    Raises FileNotFoundError where there is no gcc or torch has no GNU OpenMP, and as `compiler.compile_library`.
    """
    FOLDER.mkdir(exist_ok=True)
    if platform.machine() != "x86_64":
        return []
    gcc, openmp = shutil.which("gcc"), compiler.openmp_of_torch()
    if gcc is None or openmp is None:
        raise FileNotFoundError("no gcc" if gcc is None else "torch has no GNU OpenMP here")
    return [
        compiler.compile_library(gcc, openmp, target.flags_for(definitions), target.library(definitions))
        for target in TARGETS
        for definitions in compiler.DEFINITIONS.values()
    ]


if __name__ == "__main__":
    compile_all()
