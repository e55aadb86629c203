"""The loop of recurrence.py by compiled C (`kernels/`), on CPUs that have a compiler: the same numbers up to rounding.

At 16 captions calling torch takes longer than computing; at 160, attention's energies go through memory several times.
Shape letters as in recurrence.py.
"""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from caption_ray.model import compiled
from caption_ray.model.caption_layout import CaptionLayout


class _Problem(ctypes.Structure):
    """`struct problem` of kernels/problem.h, which says what is what."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("threads", "steps", "rows", "pictures", "per_picture", "regions", "attention", "hidden", "value"),
                *("input", "context_stride"),
            )
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("active", "active_pictures", "captions", "rank"),
                *("word_gates", "keys", "values", "first_hidden", "first_cell"),
                *("query", "context", "state", "score", "gate", "gate_bias"),
                *("query_panels", "gate_panels"),
                *("key_powers", "query_powers", "gates", "cells", "opening"),
                *("weights", "inputs", "hiddens", "spread"),
                *("d_hiddens", "d_attended", "d_weights"),
                *("d_gates", "d_query", "d_contexts"),
                *("d_opening", "d_inputs", "d_keys", "d_score", "d_state", "d_cell"),
            )
        ),
    ]


def kernel_for(word_gates: Tensor, keys: Tensor, values: Tensor) -> ctypes.CDLL | None:
    """Return the compiled loop for such tensors, or None where torch's operations must do."""
    return compiled.library_for(word_gates, word_gates.shape[1] // 4, keys.shape[2], values.shape[2])


class FusedRecurrence(torch.autograd.Function):
    """As `recurrence.Recurrence`; but score, gate and its bias come in single precision, and W in its two parts."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: ctypes.CDLL,
        layout: CaptionLayout,
        word_gates: Tensor,
        keys: Tensor,
        values: Tensor,
        hidden: Tensor,
        cell: Tensor,
        query: Tensor,
        score: Tensor,
        gate: Tensor,
        gate_bias: Tensor,
        context: Tensor | None,
        state: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden states (W, H), gated contexts (W, D) or nothing (W, 0) of them, and attention (W, R)."""
        num_words, num_regions, hidden_size = sum(layout.active), keys.shape[1], state.shape[1]
        if len(word_gates) < num_words:
            raise ValueError(f"{len(word_gates)} rows of gates, but {num_words} words")
        room = functools.partial(_room, num_words, len(word_gates))
        input_size = 0 if context is None else values.shape[2]
        given = {
            "word_gates": word_gates,
            "keys": keys,
            "values": values,
            "first_hidden": hidden,
            "first_cell": cell,
            "query": query,
            "state": state,
            "score": score,
            "gate": gate,
            "gate_bias": gate_bias,
        }
        spread = None
        if ctx.needs_input_grad[4]:
            spread = values.new_zeros(len(values), layout.num_steps, layout.per_picture, num_regions)
        exact = functools.partial(keys.new_empty, dtype=torch.float32)
        inputs, hiddens = room(keys, input_size + hidden_size), room(keys, hidden_size)
        weights = keys.new_empty(num_words, num_regions)
        problem = {name: tensor.contiguous() for name, tensor in given.items()} | {
            "context": context if context is None or context.stride(1) == 1 else context.contiguous(),
            "active": torch.tensor(layout.active),
            "active_pictures": torch.tensor(layout.active_pictures),
            "captions": layout.captions(),
            "rank": layout.rank,
            # Room for W and U as products read them, which may be in single precision.
            "gate_panels": exact(4 * hidden_size, inputs.shape[1]),
            "query_panels": exact(query.shape),
            # What the way back needs.
            "key_powers": exact(keys.shape),
            "query_powers": exact(num_words, keys.shape[2]),
            "gates": exact(num_words, 4 * hidden_size),
            "cells": exact(num_words, hidden_size),
            "opening": exact(num_words),
            "weights": weights,
            "inputs": inputs,
            "hiddens": hiddens,
            "spread": spread,
        }
        ctx.sizes = {
            "steps": layout.num_steps,
            "rows": len(layout.rank),
            "pictures": len(keys),
            "per_picture": layout.per_picture,
            "regions": num_regions,
            "attention": keys.shape[2],
            "hidden": hidden_size,
            "value": values.shape[2],
            "input": input_size,
            "context_stride": 0 if problem["context"] is None else problem["context"].stride(0),
        }
        compiled.call(kernel.forward, _Problem, ctx.sizes, problem)
        ctx.kernel, ctx.layout, ctx.names = kernel, layout, list(problem)
        ctx.save_for_backward(*problem.values())
        ctx.set_materialize_grads(False)
        return hiddens, inputs[:, :input_size], weights

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_hidden: Tensor | None, d_attended: Tensor | None, d_attention: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs."""
        layout: CaptionLayout = ctx.layout
        problem = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        keys, values, inputs, spread = (problem[name] for name in ("keys", "values", "inputs", "spread"))
        num_words, num_rows, hidden_size = sum(layout.active), len(layout.rank), ctx.sizes["hidden"]
        room = functools.partial(_room, num_words, len(inputs), keys)
        input_size = ctx.sizes["input"]
        zeros = functools.partial(keys.new_zeros, dtype=torch.float32)
        d_gates, d_query = room(4 * hidden_size), room(keys.shape[2])
        d_contexts = None if spread is None else keys.new_zeros(*spread.shape[:3], values.shape[2])
        d_opening, d_score = zeros(len(inputs)), zeros(len(keys), keys.shape[2])
        d_keys, d_state, d_cell = zeros(keys.shape), zeros(num_rows, hidden_size), zeros(num_rows, hidden_size)
        problem |= {
            "d_hiddens": None if d_hidden is None else d_hidden.contiguous(),
            "d_attended": None if d_attended is None or not input_size else d_attended.contiguous(),
            "d_weights": None if d_attention is None else d_attention.contiguous(),
            "d_inputs": keys.new_empty(num_rows, inputs.shape[1], dtype=torch.float32),
            "d_gates": d_gates,
            "d_query": d_query,
            "d_contexts": d_contexts,
            "d_opening": d_opening,
            "d_score": d_score,
            "d_keys": d_keys,
            "d_state": d_state,
            "d_cell": d_cell,
        }
        compiled.call(ctx.kernel.backward, _Problem, ctx.sizes, problem)
        states = inputs[:, input_size:]
        d_recurrent = torch.mm(d_gates.t(), inputs)
        return (
            None,
            None,
            d_gates,
            (d_keys * (4 * problem["score"])).to(keys.dtype),
            None if d_contexts is None else _d_values(spread.flatten(1, 2), d_contexts.flatten(1, 2), not input_size),
            layout.sum_by_picture(d_state).to(keys.dtype),
            layout.sum_by_picture(d_cell),
            torch.mm(d_query.t(), states),
            d_score.sum(0).mul_(-2),
            torch.mm(d_opening.to(states.dtype).unsqueeze(0), states).float(),
            d_opening.sum().unsqueeze(0),
            d_recurrent[:, :input_size] if input_size else None,
            d_recurrent[:, input_size:],
        )


def _d_values(weights: Tensor, d_averages: Tensor, by_feature: bool) -> Tensor:
    """Return the gradient (P, R, D) of values, of the weights (P, W, R) of averages and their gradients (P, W, D).

    by_feature: packed as (D, P, R), which is how the gradient of weights that made the values reads it.
    """
    if not by_feature:
        return torch.bmm(weights.mT, d_averages)
    packed = weights.new_empty(d_averages.shape[2], len(weights), weights.shape[2])
    torch.bmm(d_averages.mT, weights, out=packed.transpose(0, 1))
    return packed.permute(1, 2, 0)


def _room(num_words: int, num_rows: int, like: Tensor, size: int) -> Tensor:
    """Return room for vectors of so many words, the rows after them being zeros."""
    values = like.new_empty(num_rows, size)
    values[num_words:] = 0
    return values
