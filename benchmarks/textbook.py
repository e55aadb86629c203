"""Training pass and beam search as tutorials write them: the references of `decoder_step.py` and `beam.py`.

The training pass has a picture per caption, so that five captions of a picture carry five copies of its regions. At
every word the attention projects all regions again, an `nn.LSTMCell` takes word and context together, and the output
layer makes that word's logits. Captions are sorted by length and leave the batch as they end, as the better tutorials
have it.

The beam search takes one picture at a time. Its beams are a batch, each with a copy of the regions, and the candidates
are sorted out in Python.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from caption_ray.config import DecodeOptions
from caption_ray.model.decoder import Decoder, active_rows
from caption_ray.special_ids import END_ID, PAD_ID, START_ID, UNKNOWN_ID


def textbook_logits(
    decoder: Decoder, features: Tensor, ids: Tensor, lengths: Sequence[int], picture_index: Tensor
) -> Tensor:
    """Return logits (W, V) in the order of `pack_steps`; arguments as for `Decoder.forward`.

    Computes what `decoder` does, with its weights. Only for decoders without standardised or projected features, deep
    output, or dropout within the loop: the original's.
    """
    regions = features[picture_index]  # (N, R, F)
    hidden, cell = torch.tanh(decoder.initial_state(regions.mean(1))).chunk(2, dim=-1)
    embedded = decoder.embedding(ids)
    logits = []
    for step, rows in enumerate(active_rows(lengths)):
        regions, hidden, cell = regions[:rows], hidden[:rows], cell[:rows]
        energy = torch.tanh(decoder.attention.key(regions) + decoder.attention.query(hidden).unsqueeze(1))
        attention = torch.softmax(decoder.attention.score(energy).squeeze(2), dim=1)
        context = (regions * attention.unsqueeze(2)).sum(1)
        context = torch.sigmoid(decoder.context_gate(hidden)) * context
        hidden, cell = decoder.lstm(torch.cat((embedded[:rows, step], context), dim=1), (hidden, cell))
        logits.append(decoder.output(decoder.dropout(hidden)))
    return torch.cat(logits)


def textbook_beam_search(decoder: Decoder, features: Tensor, options: DecodeOptions) -> list[tuple[int, ...]]:
    """Return the captions that `beam_search` finds for one picture, best first, as ids. features: (1, R, F)."""
    width = options.beam_width
    context, state = decoder.prepare(features)
    regions, hidden, cell = context.values, state.hidden, state.cell
    scores, captions = torch.zeros(1, device=features.device), [[START_ID]]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for step in range(options.max_words):
        beams = regions.expand(len(captions), -1, -1)
        energy = torch.tanh(decoder.attention.key(beams) + decoder.attention.query(hidden).unsqueeze(1))
        attention = torch.softmax(decoder.attention.score(energy).squeeze(2), dim=1)
        attended = torch.sigmoid(decoder.context_gate(hidden)) * (beams * attention.unsqueeze(2)).sum(1)
        ids = torch.tensor([words[-1] for words in captions], device=features.device)
        hidden, cell = decoder.lstm(torch.cat((decoder.embedding(ids), attended), dim=1), (hidden, cell))
        read = hidden
        if decoder.config.deep_output:
            read = torch.tanh(decoder.deep(torch.cat((hidden, attended), dim=1)))
        log_p = torch.log_softmax(decoder.output(read), dim=1)
        log_p[:, [PAD_ID, START_ID, UNKNOWN_ID, END_ID] if step == 0 else [PAD_ID, START_ID, UNKNOWN_ID]] = -torch.inf
        best = (scores.unsqueeze(1) + log_p).flatten().topk(2 * width)
        going_on: list[tuple[float, int, int]] = []
        for place, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            row, word = divmod(index, log_p.shape[1])
            if word != END_ID and len(going_on) < width:
                going_on.append((score, row, word))
            elif word == END_ID and place < width:
                words = tuple(captions[row][1:])
                ended.append((score / (len(words) + 1) ** options.length_penalty, words))
        captions = [[*captions[row], word] for _, row, word in going_on]
        scores = torch.tensor([score for score, _, _ in going_on], device=features.device)
        rows = torch.tensor([row for _, row, _ in going_on], device=features.device)
        hidden, cell = hidden[rows], cell[rows]
        ended.sort(key=lambda pair: -pair[0])
        if len(ended) >= width and going_on[0][0] / (step + 1) ** options.length_penalty <= ended[width - 1][0]:
            break
    return [words for _, words in ended[:width]] or [tuple(captions[0][1:])]
