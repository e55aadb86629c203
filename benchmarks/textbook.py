"""The training pass as tutorials write it: the reference that `decoder_step.py` measures against.

One picture per caption, so that five captions of a picture carry five copies of its regions. At every word the
attention projects all regions again, an `nn.LSTMCell` takes word and context together, and the output layer makes that
word's logits. Captions are sorted by length and leave the batch as they end, as the better tutorials have it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from caption_ray.model.decoder import Decoder, active_rows


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
