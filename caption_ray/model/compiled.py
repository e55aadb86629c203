"""The C code of `kernels/` as a library: compiled where it runs, by the compiler that is there, or beforehand.

It is never needed: what calls it has torch's operations to fall back on, which also serve GPUs. What is compiled is
kept in the user's cache folder, under a digest of all that it was made from. CAPTION_RAY_KERNEL=off turns it off.
"""

import contextlib
import ctypes
import functools
import logging
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from caption_ray.model import compiler, portable

logger = logging.getLogger(__name__)

_MULTIPLE = 32
_ELF_HEADER = 64


def switched_off() -> bool:
    """Tell whether the user wants none of it."""
    return os.environ.get("CAPTION_RAY_KERNEL", "").lower() in ("off", "0")


def library_for(values: torch.Tensor, *sizes: int) -> ctypes.CDLL | None:
    """Return the library for numbers of the format of `values`, or None where torch's operations must do.

    sizes: of the vectors that are gone over, which must be multiples of `_MULTIPLE`.
    """
    definitions = compiler.DEFINITIONS.get(values.dtype)
    if values.device.type != "cpu" or definitions is None or switched_off():
        return None
    return None if any(size % _MULTIPLE for size in sizes) else load(*definitions)


def call(
    function: Any,
    kind: type[ctypes.Structure],
    numbers: Mapping[str, float],
    tensors: Mapping[str, torch.Tensor | None],
) -> int:
    """Call a function of the library with a structure of numbers, of pointers to tensors, and of the threads to have.

    What is None is left out, a null pointer. Tensors must be as the function reads them, without gaps.
    Returns what the function does, a number without meaning where it returns nothing.
    """
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
    result: int = function(ctypes.byref(kind(threads=torch.get_num_threads(), **numbers, **pointers)))
    return result


@functools.cache
def load(*definitions: str) -> ctypes.CDLL | None:
    """Return the library compiled with these `-D` definitions, or None, having logged why, where there cannot be one.

    The first call on a machine takes a second or two.
    """
    openmp = compiler.openmp_of_torch()
    gcc = shutil.which("gcc")
    reason = "no GNU OpenMP in torch" if openmp is None else "no gcc"
    if openmp is not None and (library := portable.find(definitions)) is not None:
        try:
            return _opened(library)
        except OSError as error:  # made beside a torch with another OpenMP
            reason = str(error)
    if openmp is not None and gcc is not None:
        try:
            return _load(gcc, openmp, definitions)
        except (OSError, subprocess.SubprocessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip()[-500:]
    logger.info("the decoder goes by torch's operations, slower than by compiled ones: %s", reason)
    return None


def _load(gcc: str, openmp: Path, definitions: tuple[str, ...]) -> ctypes.CDLL:
    flags = compiler.flags_for(compiler.NATIVE, (*definitions, *(("TILES",) if compiler.may_use_tiles() else ())))
    # Homes are shared by machines that differ in their CPUs.
    made_from = (repr(part).encode() for part in (gcc, openmp, flags))
    name = compiler.digest_of(compiler.version_of(gcc), compiler.cpu_flags(), *made_from) + ".so"
    try:
        kept = _cache_folder() / name
        with contextlib.suppress(OSError):  # not there, or spoilt
            return _opened(kept)
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            made = compiler.compile_library(gcc, openmp, flags, Path(folder) / name)
            # Many workers may start together. What one of them has loaded stays: of a home on NFS, a library whose file
            # another node has put another one in the place of can no longer be read.
            with contextlib.suppress(OSError):
                os.link(made, kept)
            with contextlib.suppress(OSError):
                return _opened(kept)
            made.replace(kept)  # what is there is spoilt, or there are no links here
        return ctypes.CDLL(str(kept))
    except (OSError, subprocess.CalledProcessError):  # no home, or a full one: compiled for this process alone
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(compiler.compile_library(gcc, openmp, flags, Path(folder) / name)))


def _opened(library: Path) -> ctypes.CDLL:
    """Load a library. Raises OSError, also for one that is cut off, of which the process would die."""
    content = library.read_bytes()
    if content.startswith(b"\x7fELF\x02") and len(content) > _ELF_HEADER:  # its table of sections is its end
        begin, entry_bytes, num_entries = struct.unpack_from("=Q10xHH", content, 40)
        if begin + entry_bytes * num_entries > len(content):
            raise OSError(f"{library}: is cut off")
    return ctypes.CDLL(str(library))


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caption_ray"
    except RuntimeError as error:  # neither HOME, nor an entry for this user
        raise FileNotFoundError(str(error)) from error
