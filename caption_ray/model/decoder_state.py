"""What a decoder hands on from step to step, and what all steps share.

Shape letters as in decoder.py.
"""

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caption_ray.model.arithmetic import Multiply

_FEW_ROWS = 8


class DecoderState(NamedTuple):
    """What the LSTM carries from word to word: hidden (B, H) and cell (B, H).

    origin: (B,), rising from picture to picture; rows of the same number are the same. None where nothing is known.
    """

    hidden: Tensor
    cell: Tensor
    origin: Tensor | None = None

    def shared_by_rows(self) -> tuple[Tensor, Tensor] | None:
        """Return rows whose states are all that there are, and which of them each row (B,) has.

        None where that saves nothing. Some rows may be there twice, so that their number is one of few.
        """
        if self.origin is None:
            return None
        place, which = distinct(self.origin)
        room = -(-len(place) // _FEW_ROWS) * _FEW_ROWS  # oneDNN writes code for each number of rows
        last = len(self.origin) - 1
        return (F.pad(place, (0, room - len(place)), value=last), which) if room <= last else None


class LstmWeights(NamedTuple):
    """The LSTM's weights by what they multiply: word (4H, E), context (4H, D), state (4H, H)."""

    word: Tensor
    context: Tensor
    state: Tensor


class StepProducts(NamedTuple):
    """The products of a step, by what they multiply. Those that share inputs are one.

    word: E to 4H, the LSTM's biases included.  words: (V, 4H), that product of each word, or None where there are too
    few steps for it.  hidden: H to A + 1 + 4H, the query, the context's gate and the LSTM's.
    context: D to 4H, or None where values have been multiplied by its weights beforehand.  deep: H + D to E, where
    there is deep output.  output: to V.
    """

    word: Multiply
    words: Tensor | None
    hidden: Multiply
    context: Multiply | None
    deep: Multiply | None
    output: Multiply


class PictureContext(NamedTuple):
    """What steps need of pictures, computed once: keys (P, R, A), values (P, R, D); and the products of a step.

    kernel: the code of compiled steps.  powers: (P, R, A), what these have in the keys' place (see fused_step.py).
    pictures: the numbers of those that rows are of, or None for all.
    """

    keys: Tensor
    values: Tensor
    products: StepProducts | None = None
    kernel: ctypes.CDLL | None = None
    powers: Tensor | None = None
    pictures: Tensor | None = None

    @property
    def num_pictures(self) -> int:
        """Number of pictures that rows are of."""
        return len(self.keys) if self.pictures is None else len(self.pictures)

    def of(self, pictures: Tensor) -> "PictureContext":
        """Return the context of some of the pictures, by their numbers among those that rows are of."""
        if self.powers is not None:  # compiled steps look up what they need, where it is
            return self._replace(
                pictures=pictures if self.pictures is None else self.pictures.index_select(0, pictures)
            )
        return self._replace(keys=self.keys.index_select(0, pictures), values=self.values.index_select(0, pictures))


def distinct(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each of the different numbers (B,) stands, the least first, and for each row which of them it has.

    [2, 2, 7, 5] gives [0 or 1, 3, 2] and [0, 0, 2, 1].
    """
    different, which = torch.unique(numbers, return_inverse=True)
    place = torch.empty_like(different)
    place[which] = torch.arange(len(numbers), device=numbers.device)
    return place, which
