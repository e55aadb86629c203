"""How pictures lie in a feed's columns. Without torch, which takes a process that only hands tables on two seconds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFormat:
    """How the fixed-size binary picture columns of a feed are read: `shape` and `dtype` of one picture's array."""

    shape: tuple[int, ...]
    dtype: str

    def read(self, column: pa.FixedSizeBinaryArray) -> npt.NDArray[np.generic]:
        """Return the arrays of P pictures, (P, ...), as a view into the column; those of nulls are undefined."""
        pictures = np.frombuffer(column.buffers()[1], dtype=self.dtype).reshape(-1, *self.shape)
        return pictures[column.offset : column.offset + len(column)]
