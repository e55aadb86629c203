"""The decoder's loop over words where every picture has as many captions and every caption as many words.

What `recurrence.py` computes, with fewer and larger operations: for GPUs, where each of them costs its launch whatever
it does, and where `train/graphed.py` fills captions up to be alike. The LSTM's gates and state are one operation each
way, the one that `nn.LSTMCell` has on GPUs; weight gradients, and what else can be, are taken after the loop.

Shape letters: P pictures, K captions of each, N = P * K, T steps, R regions, H hidden, A attention, D attended
features, E = A + 1 rounded up.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_softmax_backward = torch.ops.aten._softmax_backward_data
_sigmoid_backward = torch.ops.aten.sigmoid_backward
_lstm_forward = torch.ops.aten._thnn_fused_lstm_cell
_lstm_backward = torch.ops.aten._thnn_fused_lstm_cell_backward_impl

_MULTIPLE = 8
"""Products on tensor cores want sizes of this multiple."""


class RegularRecurrence(torch.autograd.Function):
    """Runs attention and LSTM over all words. Use `recurrence.unroll`."""

    @staticmethod
    def forward(
        ctx: Any,
        word_gates: Tensor,
        keys: Tensor,
        values: Tensor,
        hidden: Tensor,
        cell: Tensor,
        query: Tensor,
        score: Tensor,
        gate: Tensor,
        gate_bias: Tensor,
        context_weights: Tensor | None,
        state_weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden states (T, N, H), gated contexts (T, N, D) or nothing (T, N, 0), and attention (T, N, R).

        word_gates: (T, N, 4H).  keys: (P, R, A).  values: (P, R, D).  hidden, cell: (P, H), the first states.
        query: (A, H).  score: (A,).  gate: (1, H).  gate_bias: (1,).  context_weights: (4H, D), or None for values
        that were multiplied by them beforehand, D = 4H.  state_weights: (4H, H).
        """
        (num_steps, num_rows, _), (num_pictures, num_regions, attention_size) = word_gates.shape, keys.shape
        each = num_rows // num_pictures
        # tanh(x) = 2 sigmoid(2x) - 1, as the recurrence that this one repeats has it.
        twice_keys, twice_score = 2 * keys.unsqueeze(1), 2 * score
        rest = -(attention_size + 1) % _MULTIPLE
        asked = F.pad(torch.cat((2 * query, gate)), (0, 0, 0, rest))  # (E, H)
        bias = F.pad(gate_bias, (attention_size, rest))
        energy = keys.new_empty(num_steps, num_rows, num_regions, attention_size)
        attention = keys.new_empty(num_steps, num_rows, num_regions)
        context = values.new_empty(num_steps, num_rows, values.shape[-1])
        opening = values.new_empty(num_steps, num_rows, 1)
        gated = values.new_empty(num_steps, num_rows, 0 if context_weights is None else values.shape[-1])
        hiddens = hidden.new_empty(num_steps, num_rows, hidden.shape[-1])
        given = cell.new_empty(num_rows, 4 * hidden.shape[-1])
        kept = torch.empty_like(given)
        first = state = hidden.repeat_interleave(each, 0)
        cells, gates = [cell.repeat_interleave(each, 0)], []
        for step in range(num_steps):
            projected = torch.addmm(bias, state, asked.t())
            heat = energy[step]
            queries = projected[:, :attention_size].view(num_pictures, each, 1, attention_size)
            torch.add(twice_keys, queries, out=heat.view(num_pictures, each, num_regions, attention_size))
            heat.sigmoid_()
            torch.softmax(torch.matmul(heat, twice_score), dim=-1, out=attention[step])
            weights = attention[step].view(num_pictures, each, num_regions)
            torch.bmm(weights, values, out=context[step].view(num_pictures, each, -1))
            torch.sigmoid(projected[:, attention_size : attention_size + 1], out=opening[step])
            by_state = torch.mm(state, state_weights.t())
            if context_weights is None:
                torch.mul(context[step], opening[step], out=given)
                torch.add(word_gates[step], by_state, out=kept)
            else:
                torch.mul(context[step], opening[step], out=gated[step])
                torch.add(word_gates[step], torch.mm(gated[step], context_weights.t()), out=given)
                kept.copy_(by_state)
            out, after, active = _lstm(given, kept, cells[-1])
            state = hiddens[step].copy_(out)
            cells.append(after)
            gates.append(active)
        ctx.save_for_backward(
            *(values, energy, attention, context, opening, gated, hiddens, first),
            *(asked, twice_score, context_weights, state_weights, *cells, *gates),
        )
        ctx.set_materialize_grads(False)
        return hiddens, gated, attention

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_hidden: Tensor | None, d_gated: Tensor | None, d_attention: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, from the last step to the first."""
        values, energy, attention, context, opening, gated, hiddens, first, *others = ctx.saved_tensors
        asked, twice_score, context_weights, state_weights, *states = others
        num_steps, num_rows, num_regions, attention_size = energy.shape
        num_pictures, each, hidden_size = len(values), num_rows // len(values), hiddens.shape[-1]
        cells, gates = states[: num_steps + 1], states[num_steps + 1 :]
        # What is multiplied by the states lies side by side, and so do the weights.
        d_products = hiddens.new_empty(num_steps, num_rows, 4 * hidden_size + len(asked))
        d_gates, d_asked = d_products.split((4 * hidden_size, len(asked)), dim=-1)
        d_asked[:, :, attention_size + 1 :] = 0
        weights = torch.cat((state_weights, asked))
        open_context = context * (opening * (1 - opening))
        d_context = torch.empty_like(context)
        d_scores = torch.empty_like(attention)
        d_row_keys = energy.new_zeros(energy.shape[1:])
        d_state = hiddens.new_zeros(num_rows, hidden_size)
        d_cell = torch.zeros_like(cells[0])
        d_out = torch.empty_like(d_cell)
        for step in reversed(range(num_steps)):
            if d_hidden is None:
                d_out.copy_(d_state)
            else:
                torch.add(d_state, d_hidden[step], out=d_out)
            d_gate, d_cell = _lstm_gradients(d_out, d_cell, cells[step], cells[step + 1], gates[step])
            d_gates[step].copy_(d_gate)
            d_entered = d_gates[step] if context_weights is None else torch.mm(d_gates[step], context_weights)
            if d_gated is not None and context_weights is not None:
                d_entered = d_entered + d_gated[step]
            opened = d_asked[step, :, attention_size : attention_size + 1].unsqueeze(2)
            torch.bmm(d_entered.unsqueeze(1), open_context[step].unsqueeze(2), out=opened)
            torch.mul(d_entered, opening[step], out=d_context[step])
            d_average = d_context[step].view(num_pictures, each, -1)
            d_weights = torch.bmm(d_average, values.transpose(1, 2)).view(num_rows, num_regions)
            if d_attention is not None:
                d_weights = d_weights + d_attention[step]
            d_scores[step] = _softmax_backward(d_weights, attention[step], -1, attention.dtype)
            d_energy = _sigmoid_backward(d_scores[step].unsqueeze(-1) * twice_score, energy[step])
            d_row_keys += d_energy
            torch.sum(d_energy, 1, out=d_asked[step, :, :attention_size])
            d_state = torch.mm(d_products[step], weights)

        before = torch.cat((first.unsqueeze(0), hiddens[:-1])).flatten(0, 1)
        d_weights_of_states = torch.mm(d_products.flatten(0, 1).t(), before)
        d_state_weights, d_query, d_gate_weight, _ = d_weights_of_states.split(
            (4 * hidden_size, attention_size, 1, len(asked) - attention_size - 1)
        )
        d_score_rows = torch.bmm(d_scores.view(-1, 1, num_regions), energy.flatten(0, 1))
        d_context_weights = None
        if context_weights is not None:
            d_context_weights = torch.mm(d_gates.flatten(0, 1).t(), gated.flatten(0, 1))
        return (
            d_gates,
            2 * _by_picture(d_row_keys, each),
            _gradient_of_values(attention, d_context, num_pictures) if ctx.needs_input_grad[2] else None,
            _by_picture(d_state, each),
            _by_picture(d_cell, each),
            2 * d_query,
            2 * d_score_rows.flatten(0, 1).sum(0),
            d_gate_weight,
            d_asked[:, :, attention_size].sum().unsqueeze(0),
            d_context_weights,
            d_state_weights,
        )


def _by_picture(values: Tensor, each: int) -> Tensor:
    """Return sums (P, ...) over the captions (N, ...) of each picture."""
    return values if each == 1 else values.unflatten(0, (-1, each)).sum(1)


def _gradient_of_values(attention: Tensor, d_context: Tensor, num_pictures: int) -> Tensor:
    """Return the gradient (P, R, D), given attention (T, N, R) and that of the averages (T, N, D)."""
    weights, gradients = (
        part.unflatten(1, (num_pictures, -1)).transpose(0, 1).flatten(1, 2) for part in (attention, d_context)
    )
    return torch.bmm(weights.transpose(1, 2), gradients)


def _lstm(given: Tensor, kept: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden state, the cell, and the gates after their nonlinearities.

    given, kept: (N, 4H), which together are the gates, in the order of `nn.LSTMCell`.  before: the cell, (N, H).
    """
    if given.is_cuda:
        hidden, cell, active = _lstm_forward(given, kept, before)
        return hidden, cell, active
    enter, forget, candidate, leave = (given + kept).chunk(4, dim=-1)
    enter, forget, candidate, leave = enter.sigmoid(), forget.sigmoid(), candidate.tanh(), leave.sigmoid()
    cell = forget * before + enter * candidate
    return leave * cell.tanh(), cell, torch.cat((enter, forget, candidate, leave), dim=-1)


def _lstm_gradients(
    d_hidden: Tensor, d_cell: Tensor, before: Tensor, after: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the gates (N, 4H) before their nonlinearities, and of the cell before."""
    if gates.is_cuda:
        d_gates, d_before, _ = _lstm_backward(d_hidden, d_cell, before, after, gates, False)
        return d_gates, d_before
    enter, forget, candidate, leave = gates.chunk(4, dim=-1)
    shown = after.tanh()
    d_cell = d_cell + d_hidden * leave * (1 - shown.square())
    parts = (
        d_cell * candidate * enter * (1 - enter),
        d_cell * before * forget * (1 - forget),
        d_cell * enter * (1 - candidate.square()),
        d_hidden * shown * leave * (1 - leave),
    )
    return torch.cat(parts, dim=-1), d_cell * forget
