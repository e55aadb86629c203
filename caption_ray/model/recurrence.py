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

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_sigmoid_backward = torch.ops.aten.sigmoid_backward
_tanh_backward = torch.ops.aten.tanh_backward


class StepWeights(NamedTuple):
    """Weights of a step: query (A, H), score (A,), context gate (1, H) and its bias (1,), recurrent (4H, D + H).

    `recurrent` is (4H, H) for values that were multiplied by their part of it.
    """

    query: Tensor
    score: Tensor
    gate: Tensor
    gate_bias: Tensor
    recurrent: Tensor


class CaptionLayout:
    """Where each caption stands among its picture's, step by step.

    Captions come in rows, longest first; `active` counts those that go on at each step. Pictures are ranked by their
    longest caption, so that those still spoken of are the first p too, and attention is multiplied with values as
    (p, K, R) x (p, R, D): a picture's values are read once for all its captions.
    """

    def __init__(self, picture_index: Tensor, active: Sequence[int], num_pictures: int) -> None:
        self.active = list(active)
        ranks: dict[int, int] = {}
        taken = [0] * num_pictures
        rank_of_row, place_of_row, pictures_so_far = [], [], []
        for picture in picture_index.tolist():
            rank = ranks.setdefault(picture, len(ranks))
            rank_of_row.append(rank)
            place_of_row.append(taken[rank])
            taken[rank] += 1
            pictures_so_far.append(len(ranks))
        self.active_pictures = [pictures_so_far[rows - 1] for rows in self.active]
        self.num_steps, self.per_picture = len(self.active), max(taken)
        device = picture_index.device
        self.ranked = torch.tensor(list(ranks), device=device)  # pictures by rank
        places = torch.tensor(place_of_row, device=device)
        self.rank = torch.tensor(rank_of_row, device=device)
        self.slot = self.rank * self.per_picture + places  # of (p, K)
        self.first_slot = self.rank * (self.num_steps * self.per_picture) + places  # of (P, T, K), at step 0

    def slots(self, step: int, rows: int) -> Tensor:
        """Return the places of the first rows at a step in a buffer (P, T, K, ...) flattened to (P * T * K, ...)."""
        return self.first_slot[:rows] + step * self.per_picture

    def sum_by_picture(self, values: Tensor) -> Tensor:
        """Return (P, ...) sums over the rows (N, ...) of each picture, by rank."""
        return values.new_zeros(len(self.ranked), *values.shape[1:]).index_add_(0, self.rank, values)


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
        num_words, num_pictures, num_regions = word_gates.shape[0], *keys.shape[:2]
        value_size, hidden_size = values.shape[-1], hidden.shape[-1]
        input_size = recurrent.shape[1] - hidden_size  # of values that are still to be multiplied
        exact = torch.promote_types(keys.dtype, torch.float32)
        row_keys = keys[layout.rank]
        spread = values.new_zeros(num_pictures, layout.num_steps, layout.per_picture, num_regions)
        energy = keys.new_empty(num_words, num_regions, keys.shape[-1])
        attention = keys.new_empty(num_words, num_regions)
        context = values.new_empty(num_words, value_size)
        opening = values.new_empty(num_words, 1)
        inputs = values.new_empty(num_words, recurrent.shape[1])
        gates = torch.empty_like(word_gates)
        num_rows = len(layout.rank)
        cells = cell.new_empty(num_rows + num_words, hidden_size)  # the first states, then every word's
        hiddens = hidden.new_empty(num_words, hidden_size)
        query_and_gate = torch.cat((query, gate))
        bias = torch.cat((gate_bias.new_zeros(query.shape[0]), gate_bias))
        state, start = hidden[layout.rank], 0
        before = cells[:num_rows]
        before.copy_(cell[layout.rank])
        for step, rows in enumerate(layout.active):
            here = slice(start, start + rows)
            state, before = state[:rows], before[:rows]
            projected = torch.addmm(bias, state, query_and_gate.t())
            torch.add(row_keys[:rows], projected[:, None, :-1], out=energy[here]).tanh_()
            scores = torch.matmul(energy[here], score)
            attention[here] = torch.softmax(scores, dim=-1, dtype=exact)
            spread.flatten(0, 2)[layout.slots(step, rows)] = attention[here]
            pictures = layout.active_pictures[step]
            torch.index_select(
                torch.bmm(spread[:pictures, step], values[:pictures]).flatten(0, 1),
                0,
                layout.slot[:rows],
                out=context[here],
            )
            torch.sigmoid(projected[:, -1:], out=opening[here])
            inputs[here, input_size:] = state
            if input_size:
                torch.mul(context[here], opening[here], out=inputs[here, :input_size])
            torch.addmm(word_gates[here], inputs[here], recurrent.t(), out=gates[here])
            if not input_size:
                gates[here].addcmul_(context[here], opening[here])
            enter, forget, candidate, leave = _activate(gates[here])
            after = cells[num_rows + start : num_rows + start + rows]
            torch.mul(forget, before, out=after).add_(enter * candidate)
            state = torch.mul(leave, torch.tanh(after), out=hiddens[here])
            before = after
            start += rows
        ctx.layout = layout
        ctx.save_for_backward(
            values, energy, attention, context, opening, inputs, gates, cells, spread, query_and_gate, score, recurrent
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
        values, energy, attention, context, opening, inputs, gates, cells, spread, query_and_gate, score, recurrent = (
            ctx.saved_tensors
        )
        num_rows, num_words = len(layout.rank), inputs.shape[0]
        hidden_size, value_size = recurrent.shape[0] // 4, values.shape[-1]
        input_size = recurrent.shape[1] - hidden_size
        d_gates = torch.empty_like(gates)
        d_projected = inputs.new_empty(num_words, query_and_gate.shape[0])
        d_scores = torch.empty_like(attention)
        d_row_keys = energy.new_zeros(num_rows, *energy.shape[1:])
        d_state = inputs.new_zeros(num_rows, hidden_size)
        d_cell = cells.new_zeros(num_rows, hidden_size)
        d_spread_context = values.new_zeros(*spread.shape[:3], value_size)
        start = num_words
        for step in reversed(range(layout.num_steps)):
            rows, pictures = layout.active[step], layout.active_pictures[step]
            start -= rows
            here = slice(start, start + rows)
            end = num_rows + start
            after = cells[end : end + rows]
            previous = end - layout.active[step - 1] if step else 0
            before = cells[previous : previous + rows]

            d_out, d_memory = d_state[:rows], d_cell[:rows]
            if d_hidden is not None:
                d_out = d_out + d_hidden[here]
            _lstm_backward(gates[here], before, after, d_out, d_memory, d_gates[here])
            d_inputs = torch.mm(d_gates[here], recurrent)
            d_gated = d_inputs[:, :input_size] if input_size else d_gates[here]
            if d_attended is not None:
                d_gated = d_gated + d_attended[here]
            torch.mul(
                (d_gated * context[here]).sum(1, keepdim=True),
                opening[here] * (1 - opening[here]),
                out=d_projected[here, -1:],
            )
            slots = layout.slots(step, rows)
            d_spread_context.flatten(0, 2)[slots] = d_gated * opening[here]
            d_weights = torch.bmm(d_spread_context[:pictures, step], values[:pictures].transpose(1, 2))
            d_weights = d_weights.flatten(0, 1)[layout.slot[:rows]]
            if d_attention is not None:
                d_weights = d_weights + d_attention[here]
            weights = attention[here]
            torch.mul(weights, d_weights - (weights * d_weights).sum(1, keepdim=True), out=d_scores[here])
            d_energy = _tanh_backward(d_scores[here].unsqueeze(-1) * score, energy[here])
            d_row_keys[:rows] += d_energy
            torch.sum(d_energy, 1, out=d_projected[here, :-1])
            torch.addmm(d_inputs[:, input_size:], d_projected[here], query_and_gate, out=d_state[:rows])

        d_query_and_gate = torch.mm(d_projected.t(), inputs[:, input_size:])
        d_values = None
        if ctx.needs_input_grad[3]:
            d_values = torch.bmm(spread.flatten(1, 2).transpose(1, 2), d_spread_context.flatten(1, 2))
        return (
            None,
            d_gates,
            layout.sum_by_picture(d_row_keys),
            d_values,
            layout.sum_by_picture(d_state),
            layout.sum_by_picture(d_cell),
            d_query_and_gate[:-1],
            torch.mv(energy.flatten(0, 1).t(), d_scores.flatten()),
            d_query_and_gate[-1:],
            d_projected[:, -1].sum().unsqueeze(0),
            torch.mm(d_gates.t(), inputs),
        )


def _activate(gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put the gates (n, 4H), in nn.LSTMCell's order, through their nonlinearities in place."""
    enter_forget, candidate, leave = gates.tensor_split([gates.shape[1] // 2, gates.shape[1] // 4 * 3], dim=1)
    enter_forget.sigmoid_()
    candidate.tanh_()
    leave.sigmoid_()
    enter, forget = enter_forget.chunk(2, dim=1)
    return enter, forget, candidate, leave


def _lstm_backward(
    gates: Tensor, before: Tensor, after: Tensor, d_hidden: Tensor, d_cell: Tensor, d_gates: Tensor
) -> None:
    """Write the gradient of a step's gates before their nonlinearities, and turn d_cell into that of the cell before.

    gates: (n, 4H) after their nonlinearities.  before, after: the cell, (n, H).  d_hidden, d_cell: (n, H).
    """
    enter, forget, candidate, leave = gates.chunk(4, dim=1)
    d_enter, d_forget, d_candidate, d_leave = d_gates.chunk(4, dim=1)
    shown = torch.tanh(after)
    d_leave.copy_(_sigmoid_backward(d_hidden * shown, leave))
    d_cell += _tanh_backward(d_hidden * leave, shown)
    d_enter.copy_(_sigmoid_backward(d_cell * candidate, enter))
    d_candidate.copy_(_tanh_backward(d_cell * enter, candidate))
    d_forget.copy_(_sigmoid_backward(d_cell * before, forget))
    d_cell *= forget


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

    word_gates: (W, 4H), the words' part of the LSTM's gates, biases included, packed step by step.
    keys: (P, R, A).  values: (P, R, D).  hidden, cell: (P, H), the pictures' first states.
    Returns hidden states (W, H), gated contexts (W, D) and attention (W, R), packed alike; values that were multiplied
    beforehand (see StepWeights) leave no contexts, (W, 0). All is computed in the type of `word_gates`, but for the
    cell, which is summed up in single precision at least.
    """
    dtype = word_gates.dtype
    picked = (part.index_select(0, layout.ranked) for part in (keys, values, hidden))
    first_cell = cell.index_select(0, layout.ranked).to(torch.promote_types(dtype, torch.float32))
    with torch.autocast(word_gates.device.type, enabled=False):
        result: tuple[Tensor, Tensor, Tensor] = Recurrence.apply(
            layout, word_gates, *(part.to(dtype) for part in picked), first_cell, *(part.to(dtype) for part in weights)
        )
    return result
