"""Attention weights for decoding by compiled C (`kernels/attention.c`), on CPUs that have a compiler.

By torch's operations the energies of all regions go through memory for the sum, its tanh and its product each, which
took a third of a beam search.
"""

import ctypes

import torch
from torch import Tensor

from caption_ray.model import compiled

_MULTIPLE = 32
"""What the size of keys and queries must be a multiple of."""

_MOST_NUMBERS = 2**17
"""Most numbers of a picture's keys: a thread has them on its stack, as exponentials."""


class _Attention(ctypes.Structure):
    """`struct attention` of kernels/attention.c, which says what is what."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "pictures", "per_picture", "regions", "attention")),
        *((name, ctypes.c_void_p) for name in ("keys", "queries", "score", "weights")),
    ]


def attention_weights(query: Tensor, keys: Tensor, score: Tensor) -> Tensor | None:
    """Return softmax over r of v . tanh(k_r + q), (P, K, R), or None where torch's operations must do.

    query: (P, K, A).  keys: (P, R, A).  score: (A,), v. Nothing of it can be differentiated.
    """
    num_pictures, num_regions, size = keys.shape
    if size % _MULTIPLE or num_regions * size > _MOST_NUMBERS or query.dtype != keys.dtype:
        return None
    if score.dtype != torch.float32 or (kernel := compiled.library_for(keys)) is None:
        return None
    query, keys, score = query.contiguous(), keys.contiguous(), score.contiguous()
    weights = keys.new_empty(num_pictures, query.shape[1], num_regions, dtype=torch.float32)
    problem = _Attention(
        threads=torch.get_num_threads(),
        pictures=num_pictures,
        per_picture=query.shape[1],
        regions=num_regions,
        attention=size,
        keys=keys.data_ptr(),
        queries=query.data_ptr(),
        score=score.data_ptr(),
        weights=weights.data_ptr(),
    )
    kernel.attention(ctypes.byref(problem))
    return weights
