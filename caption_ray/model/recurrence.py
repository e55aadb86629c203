"""The decoder's loop over words, forward and backward, for whole captions whose words are known.

Autograd through a loop keeps a graph of every small operation, copies each slice of the keys and values again on the
way back, and multiplies once a step for each weight's gradient. Written out by hand, a step keeps what the way back
needs in buffers packed as `decoder.pack_steps` packs words, and whatever is not part of the recurrence (the gradients
of all weights and of the values) is one product after the loop.

The values may come as the LSTM's gates see them, multiplied by its context weights beforehand (D = 4H): attention
averages and the gate scales, both of which change places with a product. That is less work where many words are said
of few pictures.

Shape letters: P pictures, R regions, N captions, K most captions of one picture, T steps, W words of all captions,
n captions that go on at a step, p pictures that they are of, H hidden, A attention, D attended features.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from caption_ray.model.caption_layout import Averaging, CaptionLayout
from caption_ray.model.fused import FusedRecurrence, kernel_for
from caption_ray.model.regular_recurrence import RegularRecurrence

_softmax_backward = torch.ops.aten._softmax_backward_data
_sigmoid_backward = torch.ops.aten.sigmoid_backward


class StepWeights(NamedTuple):
    """Weights of a step: query (A, H), score (A,), context gate (1, H) and its bias (1,), and the LSTM's.

    context: (4H, D), or None for values that were multiplied by it beforehand.  state: (4H, H).
    """

    query: Tensor
    score: Tensor
    gate: Tensor
    gate_bias: Tensor
    context: Tensor | None
    state: Tensor


class Recurrence(torch.autograd.Function):
    """Runs attention and LSTM over all words. Use `unroll`."""

    @staticmethod
    def forward(
        ctx: Any,
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
        recurrent: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden states (W, H), gated contexts (W, D) or nothing (W, 0) of them, and attention (W, R)."""
        num_words, num_rows, num_regions = word_gates.shape[0], len(layout.rank), keys.shape[1]
        value_size, hidden_size = values.shape[-1], hidden.shape[-1]
        input_size = recurrent.shape[1] - hidden_size  # of values that are still to be multiplied
        exact = torch.promote_types(keys.dtype, torch.float32)
        # tanh(x) = 2 sigmoid(2x) - 1, in a third of tanh's time on a CPU; the constant does not change the softmax.
        row_keys = layout.by_row(2 * keys)
        averaging = Averaging(layout, values)
        energy = keys.new_empty(num_words, num_regions, keys.shape[-1])
        attention = keys.new_empty(num_words, num_regions)
        context = values.new_empty(num_words, value_size)
        opening = values.new_empty(num_words, 1)
        inputs = values.new_empty(num_words, recurrent.shape[1])
        gates = word_gates.new_empty(num_words, 4 * hidden_size, dtype=exact)
        cells = cell.new_empty(num_rows + num_words, hidden_size)  # the first states, then every word's
        shown = cell.new_empty(num_words, hidden_size)
        hiddens = hidden.new_empty(num_words, hidden_size)
        query_and_gate = torch.cat((2 * query, gate))
        twice_score = 2 * score
        bias = torch.cat((gate_bias.new_zeros(query.shape[0]), gate_bias))
        state, before = layout.by_row(hidden), cells[:num_rows]
        before.copy_(layout.by_row(cell))
        # Views of every step's part at once: slicing buffers step by step takes longer than some of the products.
        buffers = (word_gates, energy, attention, context, opening, inputs, gates, cells[num_rows:], shown, hiddens)
        steps = zip(*(buffer.split(layout.active) for buffer in buffers), strict=True)
        for step, (word, heat, weights, average, gated, entry, gate_values, after, tanh_cell, out) in enumerate(steps):
            rows = layout.active[step]
            state, before = state[:rows], before[:rows]
            projected = torch.addmm(bias, state, query_and_gate.t())
            torch.add(row_keys[:rows], projected[:, None, :-1], out=heat).sigmoid_()
            weights.copy_(torch.softmax(torch.matmul(heat, twice_score), dim=-1, dtype=exact))
            averaging.average(step, weights, out=average)
            torch.sigmoid(projected[:, -1:], out=gated)
            entry[:, input_size:] = state
            if input_size:
                torch.mul(average, gated, out=entry[:, :input_size])
                gate_values.copy_(torch.addmm(word, entry, recurrent.t()))
            else:
                gate_values.copy_(torch.addmm(word, entry, recurrent.t()).addcmul_(average, gated))
            enter, forget, candidate, leave = _activate(gate_values)
            torch.mul(forget, before, out=after).addcmul_(enter, candidate)
            state = torch.mul(leave, torch.tanh(after, out=tanh_cell), out=out)
            before = after
        ctx.layout = layout
        ctx.save_for_backward(
            values,
            averaging.weights,
            energy,
            attention,
            context,
            opening,
            inputs,
            gates,
            cells,
            shown,
            query_and_gate,
            twice_score,
            recurrent,
        )
        ctx.set_materialize_grads(False)
        return hiddens, inputs[:, :input_size].clone(), attention

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_hidden: Tensor | None, d_attended: Tensor | None, d_attention: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, from the last step to the first."""
        layout: CaptionLayout = ctx.layout
        values, spread, energy, attention, context, opening, inputs, gates, cells, shown, *weights = ctx.saved_tensors
        query_and_gate, twice_score, recurrent = weights
        averaging = Averaging(layout, values, spread)
        num_rows, num_words = len(layout.rank), inputs.shape[0]
        hidden_size = recurrent.shape[0] // 4
        input_size = recurrent.shape[1] - hidden_size
        # All that the loop multiplies gradients with and that does not depend on them, for all words together.
        forget = gates[:, hidden_size : 2 * hidden_size]
        by_cell, by_hidden, cell_by_hidden = _lstm_derivatives(gates, cells[layout.words_before], shown)
        context_by_gate = context * (opening * (1 - opening))
        d_gates = inputs.new_empty(num_words, 4, hidden_size)
        d_projected = inputs.new_empty(num_words, query_and_gate.shape[0])
        d_score_rows = inputs.new_empty(num_words, 1, twice_score.shape[0])
        d_row_keys = energy.new_zeros(num_rows, *energy.shape[1:])
        d_state = inputs.new_zeros(num_rows, hidden_size)
        d_cell = cells.new_zeros(num_rows, hidden_size)
        given = [None if d is None else d.split(layout.active) for d in (d_hidden, d_attended, d_attention)]
        buffers = (by_cell, by_hidden, cell_by_hidden, forget, context_by_gate, opening, attention, energy)
        parts = [buffer.split(layout.active) for buffer in (*buffers, d_gates, d_projected, d_score_rows)]
        for step in reversed(range(layout.num_steps)):
            rows = layout.active[step]
            to_hidden, to_attended, to_attention = (None if d is None else d[step] for d in given)
            in_cell, in_hidden, hidden_in_cell, kept, open_context, gated, weights, heat, d_gate, d_project, d_score = (
                part[step] for part in parts
            )
            d_memory = d_cell[:rows]
            d_out = (d_state[:rows] if to_hidden is None else d_state[:rows] + to_hidden).to(cells.dtype)
            d_memory.addcmul_(d_out, hidden_in_cell)
            torch.mul(d_memory.unsqueeze(1), in_cell, out=d_gate[:, :3])
            torch.mul(d_out, in_hidden, out=d_gate[:, 3])
            d_memory.mul_(kept)
            d_inputs = torch.mm(d_gate.flatten(1), recurrent)
            d_gated = d_inputs[:, :input_size] if input_size else d_gate.flatten(1)
            if to_attended is not None and input_size:
                d_gated = d_gated + to_attended
            torch.sum(d_gated * open_context, 1, keepdim=True, out=d_project[:, -1:])
            d_weights = averaging.d_weights(step, d_gated, gated)
            if to_attention is not None:
                d_weights = d_weights + to_attention
            d_heat = _softmax_backward(d_weights, weights, -1, weights.dtype)
            torch.bmm(d_heat.unsqueeze(1), heat, out=d_score)
            d_energy = _sigmoid_backward(d_heat.unsqueeze(-1) * twice_score, heat)
            d_row_keys[:rows] += d_energy
            torch.sum(d_energy, 1, out=d_project[:, :-1])
            torch.addmm(d_inputs[:, input_size:], d_project, query_and_gate, out=d_state[:rows])

        d_query_and_gate = torch.mm(d_projected.t(), inputs[:, input_size:])
        return (
            None,
            d_gates.flatten(1),
            layout.sum_by_picture(d_row_keys).mul_(2),
            averaging.d_values() if ctx.needs_input_grad[3] else None,
            layout.sum_by_picture(d_state),
            layout.sum_by_picture(d_cell),
            d_query_and_gate[:-1].mul_(2),
            2 * d_score_rows.flatten(0, 1).sum(0),
            d_query_and_gate[-1:],
            d_projected[:, -1].sum().unsqueeze(0),
            torch.mm(d_gates.flatten(1).t(), inputs),
        )


def _activate(gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put the gates (n, 4H), in nn.LSTMCell's order, through their nonlinearities in place."""
    enter_forget, candidate, leave = gates.tensor_split([gates.shape[1] // 2, gates.shape[1] // 4 * 3], dim=1)
    enter_forget.sigmoid_()
    candidate.tanh_()
    leave.sigmoid_()
    enter, forget = enter_forget.chunk(2, dim=1)
    return enter, forget, candidate, leave


def _lstm_derivatives(gates: Tensor, before: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return derivatives of the LSTM, all words at once.

    gates: (W, 4H) after their nonlinearities.  before: the cell before, (W, H).  shown: tanh of the cell after, (W, H).
    Returns those of the cell by the first three gates before their nonlinearities (W, 3, H), of the hidden state by
    the fourth (W, H), and of the hidden state by the cell (W, H).
    """
    enter, forget, candidate, leave = gates.chunk(4, dim=1)
    by_gates = gates.new_empty(len(gates), 3, before.shape[1])
    torch.mul(candidate, enter * (1 - enter), out=by_gates[:, 0])
    torch.mul(before, forget * (1 - forget), out=by_gates[:, 1])
    torch.mul(enter, 1 - candidate.square(), out=by_gates[:, 2])
    return by_gates, shown * (leave * (1 - leave)), leave * (1 - shown.square())


def multiplies_less_first(values: Tensor, context_weights: Tensor, num_words: int) -> bool:
    """Tell whether there is less to multiply, forward and backward, if values meet the LSTM's weights beforehand.

    values: (P, R, D).  context_weights: (4H, D).  By the weights go the values of all regions, and back again if they
    have a gradient, or else the context of each word; attention then averages vectors of length 4H, or else of D.
    """
    num_pictures, num_regions, value_size = values.shape
    num_gates = context_weights.shape[0]
    passes = 3 if values.requires_grad else 2
    beforehand = passes * num_pictures * num_regions * value_size * num_gates + 3 * num_words * num_regions * num_gates
    afterwards = 3 * num_words * value_size * num_gates + passes * num_words * num_regions * value_size
    return beforehand < afterwards


def unroll(
    layout: CaptionLayout,
    word_gates: Tensor,
    keys: Tensor,
    values: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: StepWeights,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the decoder over whole captions.

    word_gates: (W, 4H), the words' part of the LSTM's gates, biases included, packed step by step. Further rows are
    ignored, and the hidden states and contexts have as many, zeros.
    keys: (P, R, A).  values: (P, R, D).  hidden, cell: (P, H), the pictures' first states.
    Returns hidden states (W, H), gated contexts (W, D) and attention (W, R), packed alike; values that were multiplied
    beforehand (see StepWeights) leave no contexts, (W, 0). All is computed in the type of `word_gates`, but for the
    cell, which is summed up in single precision at least.
    """
    dtype = word_gates.dtype
    first_cell = layout.by_rank(cell).to(torch.promote_types(dtype, torch.float32))
    with torch.autocast(word_gates.device.type, enabled=False):
        picked = [layout.by_rank(part.to(dtype)) for part in (keys, values, hidden)]
        *attending, context, state = weights
        if kernel := kernel_for(word_gates, *picked[:2]):
            query, *others = attending
            others = [part.float() for part in others]
            fused: tuple[Tensor, Tensor, Tensor] = FusedRecurrence.apply(
                *(kernel, layout, word_gates, *picked, first_cell, query.to(dtype), *others),
                *(None if part is None else part.to(dtype) for part in (context, state)),
            )
            return fused
        num_words, room = sum(layout.active), len(word_gates)
        if layout.regular:
            by_step = word_gates[:num_words].unflatten(0, (layout.num_steps, -1))
            parts = (part if part is None else part.to(dtype) for part in weights)
            regular = RegularRecurrence.apply(by_step, *picked, first_cell, *parts)
            hiddens, contexts, attention = (part.flatten(0, 1) for part in regular)
        else:
            recurrent = torch.cat([part.to(dtype) for part in (context, state) if part is not None], dim=1)
            hiddens, contexts, attention = Recurrence.apply(
                layout, word_gates[:num_words], *picked, first_cell, *(part.to(dtype) for part in attending), recurrent
            )
        return *(F.pad(part, (0, 0, 0, room - num_words)) for part in (hiddens, contexts)), attention
