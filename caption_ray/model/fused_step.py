"""Attention and the LSTM's nonlinearities in a step of decoding, by compiled C (`kernels/step.c`), on CPUs.

By torch's operations the energies of all regions go through memory for the sum, its tanh and its product each, and the
gates for every nonlinearity: together half of a beam search.
"""

import ctypes

import torch
from torch import Tensor

from caption_ray.model import compiled
from caption_ray.model.arithmetic import by_onednn


class _Attention(ctypes.Structure):
    """`struct attention` of kernels/step.c, which says what is what."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "rows", "pictures", "regions", "attention", "value")),
        *((name, ctypes.c_void_p) for name in ("powers", "values", "queries", "picture_of", "score")),
        *((name, ctypes.c_void_p) for name in ("weights", "averages")),
    ]


class _Cell(ctypes.Structure):
    """`struct cell` of kernels/step.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "rows", "hidden", "states", "words")),
        *((name, ctypes.c_void_p) for name in ("state_gates", "word_gates", "state_of", "word_of")),
        *((name, ctypes.c_void_p) for name in ("before", "after", "state")),
    ]


def step_kernel(keys: Tensor, values: Tensor) -> ctypes.CDLL | None:
    """Return the compiled code for steps with such tensors, or None where torch's operations must do."""
    if not (by_onednn(keys) and by_onednn(values)):
        return None
    return compiled.library_for(keys, keys.shape[2], values.shape[2])


def key_powers(kernel: ctypes.CDLL, keys: Tensor) -> Tensor:
    """Return e^2k of keys (P, R, A): tanh(k + q) = 1 - 2 / (1 + e^2k e^2q)."""
    keys = keys.contiguous()
    powers = torch.empty_like(keys)
    sizes = (ctypes.c_int64(torch.get_num_threads()), ctypes.c_int64(keys.numel()))
    kernel.powers(*sizes, ctypes.c_void_p(keys.data_ptr()), ctypes.c_void_p(powers.data_ptr()))
    return powers


def look(
    kernel: ctypes.CDLL, query: Tensor, powers: Tensor, values: Tensor, picture_of: Tensor, score: Tensor
) -> tuple[Tensor, Tensor]:
    """Return attention a = softmax over r of v . tanh(k_r + q), (N, R), and the averages of values by it, (N, D).

    query: (N, A), q.  powers: (P, R, A), of keys k, see `key_powers`.  values: (P, R, D).  picture_of: (N,), each row's
    picture.  score: (A,), v. All in single precision; nothing of it can be differentiated.
    Raises IndexError where a picture is not one of the P.
    """
    num_rows, (num_pictures, num_regions, size), value_size = len(query), powers.shape, values.shape[2]
    weights, averages = query.new_empty(num_rows, num_regions), query.new_empty(num_rows, value_size)
    tensors = {
        "powers": powers.contiguous(),
        "values": values.contiguous(),
        "queries": query.contiguous(),
        "picture_of": picture_of.long().contiguous(),
        "score": score.contiguous(),
        "weights": weights,
        "averages": averages,
    }
    sizes = {"rows": num_rows, "pictures": num_pictures, "regions": num_regions, "attention": size, "value": value_size}
    if compiled.call(kernel.attention, _Attention, sizes, tensors):
        raise IndexError(f"a row is of none of the {num_pictures} pictures")
    return weights, averages


def advance(
    kernel: ctypes.CDLL,
    state_gates: Tensor,
    state_of: Tensor | None,
    word_gates: Tensor,
    word_of: Tensor | None,
    cell: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the LSTM's hidden states and cells after a step, (N, H) each.

    state_gates: (U, 4H), word_gates: (V, 4H), what state and word give to the gates, in nn.LSTMCell's order, in single
    precision.  state_of, word_of: (N,), which of them is a row's, or None for its own.  cell: (N, H), before the step.
    Raises IndexError where a row has none of these.
    """
    num_rows, hidden_size = cell.shape
    after, state = (torch.empty_like(cell, memory_format=torch.contiguous_format) for _ in range(2))
    tensors = {
        "state_gates": state_gates.contiguous(),
        "word_gates": word_gates.contiguous(),
        "state_of": None if state_of is None else state_of.long().contiguous(),
        "word_of": None if word_of is None else word_of.long().contiguous(),
        "before": cell.contiguous(),
        "after": after,
        "state": state,
    }
    sizes = {"rows": num_rows, "hidden": hidden_size, "states": len(state_gates), "words": len(word_gates)}
    if lacking := compiled.call(kernel.cell, _Cell, sizes, tensors):
        raise IndexError(f"a row has none of the {len((state_gates, word_gates)[lacking - 1])} rows of gates")
    return state, after
