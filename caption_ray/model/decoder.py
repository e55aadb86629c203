"""The LSTM decoder with visual attention of Xu et al. 2015, "Show, Attend and Tell" (soft attention).

Shape letters: P pictures, R regions, F encoder features, D attended features, K rows per picture, B = P * K rows
(picture-major), N captions, T steps, H hidden, E embedding, V vocabulary, W words of a whole batch.

Where it differs from the paper: the output layer reads the hidden state alone unless `deep_output` is set, and region
features may first be projected to a smaller size (`feature_size`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caption_ray.config import ModelConfig
from caption_ray.model.arithmetic import Multiply, Product, linear, mean_of_regions, split_inputs, tanh
from caption_ray.model.attention import AdditiveAttention
from caption_ray.model.caption_layout import CaptionLayout
from caption_ray.model.decoder_state import DecoderState, LstmWeights, PictureContext, StepProducts
from caption_ray.model.dropout import Dropout
from caption_ray.model.fused_step import advance, key_powers, look, step_kernel
from caption_ray.model.recurrence import StepWeights, multiplies_less_first, unroll
from caption_ray.special_ids import PAD_ID, UNKNOWN_ID

_ROWS = 32


class TeacherForcing(NamedTuple):
    """Result of a training pass: logits (W, V) in the order of `pack_steps`, attention summed over words (N, R).

    In half precision on a CPU the logits may have more rows, which mean nothing (see `_room`).
    """

    logits: Tensor
    attention_sums: Tensor


class Decoder(nn.Module):
    """Predicts a caption's next word from the words so far and the regions that it attends to."""

    feature_mean: Tensor
    feature_deviation: Tensor

    def __init__(self, config: ModelConfig, num_features: int, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        value_size = config.feature_size or num_features
        if config.standardise_features:
            self.register_buffer("feature_mean", torch.zeros(num_features))
            self.register_buffer("feature_deviation", torch.ones(num_features))
        embedding, hidden = config.embedding_size, config.hidden_size
        self.feature_projection: nn.Module = (
            nn.Sequential(
                nn.Linear(num_features, value_size),
                nn.LayerNorm(value_size),
                nn.ReLU(),
                Dropout(config.feature_dropout),
            )
            if config.feature_size
            else nn.Identity()
        )
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        self.attention = AdditiveAttention(value_size, hidden, config.attention_size)
        self.context_gate = nn.Linear(hidden, 1)
        self.initial_state = nn.Linear(value_size, 2 * hidden)
        self.lstm = nn.LSTMCell(embedding + value_size, hidden)
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.dropout = Dropout(config.dropout)
        readout_size = hidden
        if config.deep_output:
            self.deep = nn.Linear(hidden + value_size, embedding)
            readout_size = embedding
        self.output = nn.Linear(readout_size, vocabulary_size)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=self.config.embedding_size**-0.5)
        for name, weight in self.lstm.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.zeros_(weight)
        hidden = self.config.hidden_size
        with torch.no_grad():  # a forget gate open from the start (Jozefowicz et al. 2015, sec. 2.2)
            self.lstm.bias_ih[hidden : 2 * hidden].fill_(1.0)
        nn.init.zeros_(self.output.bias)

    def set_feature_statistics(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        """Set what `standardise_features` subtracts and divides by: a number per feature each, F in all."""
        self.feature_mean.copy_(torch.tensor(mean))
        self.feature_deviation.copy_(torch.tensor(deviation))

    def prepare(self, features: Tensor) -> tuple[PictureContext, DecoderState]:
        """Return what all steps over these pictures share, and the first state: one row a picture.

        features: (P, R, F), in any format.
        """
        values = self.values(features)
        return PictureContext(self.attention.project(values), values), self.first_state(values)

    def values(self, features: Tensor) -> Tensor:
        """Return what is attended to (P, R, D) of features (P, R, F), in any format."""
        exact = self.embedding.weight.dtype
        if self.config.standardise_features:
            scale = 1 / self.feature_deviation
            features = torch.addcmul(-self.feature_mean * scale, features.to(exact), scale)  # one pass over them
        # In the format of the products, once: autocast would round them anew for each.
        autocast = torch.is_autocast_enabled(features.device.type)
        return self._project(features).to(torch.get_autocast_dtype(features.device.type) if autocast else exact)

    def first_state(self, values: Tensor, product: Multiply | None = None) -> DecoderState:
        """Return the state before the first word, one row a picture, of values (P, R, D).

        product: that of `initial_state`, where it has been laid out.
        """
        hidden, cell = torch.tanh((product or self.initial_state)(mean_of_regions(values))).chunk(2, dim=-1)
        return DecoderState(hidden, cell)

    def start(self, features: Tensor) -> tuple[PictureContext, DecoderState]:
        """Prepare for many steps: as `prepare`, with the products laid out for them once.

        The decoder's weights must stay as they are until the last step.
        """
        context, first = self.prepare(features)
        return self.lay_out(context, self.step_products()), first

    def lay_out(self, context: PictureContext, products: StepProducts) -> PictureContext:
        """Return the context of `prepare` with all that is laid out once for many steps."""
        kernel = step_kernel(context.keys, context.values)
        powers = None if kernel is None else key_powers(kernel, context.keys)
        return context._replace(products=products, kernel=kernel, powers=powers)

    def _project(self, features: Tensor) -> Tensor:
        if not isinstance(self.feature_projection, nn.Sequential):
            return features
        first, *others = self.feature_projection
        assert isinstance(first, nn.Linear)
        values = linear(features.to(first.weight.dtype), first.weight, first.bias)
        for part in others:
            values = part(values)
        return values

    def step_products(self, make: Callable[..., Multiply] = Product) -> StepProducts:
        """Return the products of a step, each made of weights and perhaps a bias, which are not followed later on."""
        weights = self.split_weights()
        query, gate = self.attention.query.weight, self.context_gate
        gate_bias = F.pad(gate.bias, (len(query), len(weights.state)))
        return StepProducts(
            word=make(weights.word, self.lstm.bias_ih + self.lstm.bias_hh),
            words=None,
            hidden=make(torch.cat((query, gate.weight, weights.state)), gate_bias),
            context=make(weights.context),
            deep=make(self.deep.weight, self.deep.bias) if self.config.deep_output else None,
            output=make(self.output.weight, self.output.bias),
        )

    def step(self, ids: Tensor, state: DecoderState, context: PictureContext) -> tuple[Tensor, DecoderState, Tensor]:
        """Take one word per row and score the next. For decoding: dropout has no part in it.

        ids: (B,), with B = P * K rows, those of a picture side by side.  context: from `start`; that of `prepare` will
        do for a single step, which then lays the products out for itself.
        Returns logits (B, V), the new state, and attention (B, R), whose rows sum to 1.
        """
        products = context.products or self.step_products()
        config, num_pictures = self.config, context.num_pictures
        kernel, word_gates = context.kernel, products.words
        word_of: Tensor | None = ids
        if word_gates is None:
            # Each word once: beams share most of theirs. On a GPU, counting them would take longer than it saves.
            words, word_of = torch.unique(ids, return_inverse=True) if ids.device.type == "cpu" else (ids, None)
            word_gates = products.word(self.embedding(words))

        # What does not depend on the word: once for all words that a search goes on with from the same state.
        hidden, first, state_of = state.hidden, None, None
        if kernel is not None and (shared := state.shared_by_rows()):
            first, state_of = shared
            hidden = hidden.index_select(0, first)
        sizes = [config.attention_size, 1, 4 * config.hidden_size]
        query, gate, hidden_gates = products.hidden(hidden).split(sizes, dim=-1)
        if kernel is None or context.powers is None:
            weights = self.attention.attend(query.unflatten(0, (num_pictures, -1)), context.keys)  # (P, K, R)
            attention, attended = weights.flatten(0, 1), torch.matmul(weights, context.values).flatten(0, 1)
        else:
            picture_of = (torch.arange(len(ids)) if first is None else first) // (len(ids) // num_pictures)
            if context.pictures is not None:
                picture_of = context.pictures.index_select(0, picture_of)
            score = self.attention.score.weight[0]
            attention, attended = look(kernel, query, context.powers, context.values, picture_of, score)
        attended = torch.sigmoid(gate) * attended  # Xu et al. 2015, sec. 4.2.1
        state_gates = hidden_gates + (attended if products.context is None else products.context(attended))

        if kernel is None:
            gates = state_gates.add_(word_gates if word_of is None else word_gates.index_select(0, word_of))
            enter, forget, candidate, leave = gates.chunk(4, dim=-1)  # nn.LSTMCell's order
            cell = torch.sigmoid(forget) * state.cell + torch.sigmoid(enter) * tanh(candidate)
            hidden = torch.sigmoid(leave) * tanh(cell)
        else:
            hidden, cell = advance(kernel, state_gates, state_of, word_gates, word_of, state.cell)
        if state_of is not None:
            attention, attended = (part.index_select(0, state_of) for part in (attention, attended))
        read = hidden
        if products.deep is not None:
            read = tanh(products.deep(torch.cat((hidden, attended), dim=-1)))
        return products.output(read), DecoderState(hidden, cell), attention

    def forward(self, features: Tensor, ids: Tensor, lengths: Sequence[int], picture_index: Tensor) -> TeacherForcing:
        """Score every next word of whole captions, the true words being fed in (teacher forcing).

        The same recurrence as `step`, with everything that does not depend on the state taken out of the loop, and
        with captions leaving the batch as they end (see recurrence.py).

        features: (P, R, F).  ids: (N, T + 1), <start> words <end>, padded, longest caption first.
        lengths: predictions per caption, each its words plus <end>, falling.  picture_index: (N,), rows of features.
        """
        layout = CaptionLayout(picture_index, active_rows(lengths), features.shape[0])
        logits, attention = self.score_words(features, pack_steps(ids[:, :-1], lengths), layout)
        return TeacherForcing(logits, layout.sum_by_caption(attention))

    def score_words(self, features: Tensor, words: Tensor, layout: CaptionLayout) -> tuple[Tensor, Tensor]:
        """Score what follows each of the words (W,), packed, of captions that stand as `layout` says.

        Returns logits (W, V), perhaps with more rows (see TeacherForcing), and attention (W, R).
        """
        context, first = self.prepare(features)
        weights = self.split_weights()
        # Deep output wants the contexts themselves.
        beforehand = not self.config.deep_output and multiplies_less_first(context.values, weights.context, len(words))
        words = self._drop_words(words)
        words = F.pad(words, (0, _room(len(words), words.device) - len(words)), value=PAD_ID)
        hidden, attended, attention = unroll(
            layout,
            self._word_gates(self.embedding_dropout(self.embedding(words)), weights),
            context.keys,
            F.linear(context.values, weights.context) if beforehand else context.values,
            first.hidden,
            first.cell,
            StepWeights(
                query=self.attention.query.weight,
                score=self.attention.score.weight[0],
                gate=self.context_gate.weight,
                gate_bias=self.context_gate.bias,
                context=None if beforehand else weights.context,
                state=weights.state,
            ),
        )
        return self._readout(hidden, attended), attention

    def split_weights(self) -> LstmWeights:
        """Return the LSTM's weights by what they multiply, under autocast rounded to its format."""
        word, context = split_inputs(self.lstm.weight_ih, self.config.embedding_size)
        return LstmWeights(word, context, self.lstm.weight_hh)

    def _word_gates(self, embedded: Tensor, weights: LstmWeights) -> Tensor:
        return F.linear(embedded, weights.word, self.lstm.bias_ih + self.lstm.bias_hh)

    def _readout(self, hidden: Tensor, attended: Tensor) -> Tensor:
        if self.config.deep_output:
            hidden = torch.tanh(self.deep(torch.cat((self.dropout(hidden), attended), dim=-1)))
        logits: Tensor = self.output(self.dropout(hidden))
        return logits

    def _drop_words(self, ids: Tensor) -> Tensor:
        if not self.training or self.config.word_dropout == 0:
            return ids
        # Ids below UNKNOWN_ID are markers, which stay.
        dropped = (torch.rand(ids.shape, device=ids.device) < self.config.word_dropout) & (ids > UNKNOWN_ID)
        return ids.masked_fill(dropped, UNKNOWN_ID)


def _room(num_words: int, device: torch.device) -> int:
    """Return how many rows to have for so many words: the next multiple of `_ROWS` where shapes are dear.

    For products in half precision oneDNN writes machine code for every shape that it meets, which takes longer than
    many of the products, and the words of batches are hardly ever as many.
    """
    if device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return -(-num_words // _ROWS) * _ROWS
    return num_words


def active_rows(lengths: Sequence[int]) -> list[int]:
    """Return for each step how many captions still go on; `lengths` fall. [3, 1] gives [2, 1, 1]."""
    counts, rows = [], len(lengths)
    for step in range(lengths[0]):
        while lengths[rows - 1] <= step:
            rows -= 1
        counts.append(rows)
    return counts


def pack_steps(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the unpadded entries of (N, T, ...) as (W, ...), step by step: all first words, all second words, ...

    The order is that of `nn.utils.rnn.pack_padded_sequence`; `lengths` fall.
    """
    return torch.cat([values[:rows, step] for step, rows in enumerate(active_rows(lengths))])
