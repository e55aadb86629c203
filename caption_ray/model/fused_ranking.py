"""The best continuations of a search's beams by compiled C (`kernels/ranking.c`), on CPUs.

By torch's operations the scores of all words are written and read again three times before a few of them are chosen.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from caption_ray.model import compiled
from caption_ray.model.arithmetic import by_onednn


class _Ranking(ctypes.Structure):
    """`struct ranking` of kernels/ranking.c, which says what is what."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "pictures", "rows", "words", "count", "num_never")),
        *((name, ctypes.c_void_p) for name in ("never", "logits", "scores", "totals", "origins", "found")),
    ]


def ranking_kernel(logits: Tensor) -> ctypes.CDLL | None:
    """Return the compiled code for such logits, or None where torch's operations must do."""
    return compiled.library_for(logits) if by_onednn(logits) else None


def rank(
    kernel: ctypes.CDLL, logits: Tensor, scores: Tensor, never: Sequence[int], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `count` best continuations of each picture, best first: their totals, rows and words, (P, count) each.

    A total is its row's score and the word's log-probability; minus infinity, of no meaning, where there are fewer.
    logits: (B, V), rows picture by picture.  scores: (P, K), with P * K = B.  never: words that are not chosen.
    Raises ValueError where these do not fit together, or nothing is to be found.
    """
    num_pictures, num_rows = scores.shape
    if len(logits) != scores.numel() or count < 1:
        raise ValueError(f"the {count} best of {len(logits)} rows, with scores for {num_pictures} times {num_rows}")
    forbidden = torch.tensor(never)
    origins, found = (torch.empty((num_pictures, count), dtype=torch.long) for _ in range(2))
    totals = torch.empty((num_pictures, count))
    tensors = {
        "never": forbidden,
        "logits": logits.contiguous(),
        "scores": scores.float().contiguous(),
        "totals": totals,
        "origins": origins,
        "found": found,
    }
    sizes = {"pictures": num_pictures, "rows": num_rows, "words": logits.shape[1], "count": count}
    compiled.call(kernel.rank, _Ranking, {**sizes, "num_never": len(forbidden)}, tensors)
    return totals, origins, found
