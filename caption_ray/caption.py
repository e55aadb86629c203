"""A caption as it is handed on. Without torch, so that what speaks HTTP can do without."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One caption of a picture.

    words: without markers.  log_probability: natural logarithm, of the words and the end (of the words
    alone where `max_words` cut it off).
    attention: (T, side, side), for each word the share of attention on each cell; each map sums to 1.
    """

    words: tuple[str, ...]
    log_probability: float
    attention: npt.NDArray[np.float32]

    @property
    def text(self) -> str:
        """The words as a sentence."""
        return " ".join(self.words)
