"""Additive attention over the regions of a picture."""

import torch
from torch import Tensor, nn

from caption_ray.model.arithmetic import by_onednn, linear

_BLOCK_NUMBERS = 2**21
"""Energies that are made at a time on a CPU: 8 MiB of them stay in its caches from sum to score."""


class AdditiveAttention(nn.Module):
    """Additive attention (Bahdanau et al. 2015, eq. 6; Xu et al. 2015, sec. 3.1.2): score = v . tanh(W f + U h + b).

    Split in two calls, since the keys W f + b of a picture are the same at every step and for all its captions.
    The gate of Xu et al. lives in decoder.py.
    """

    def __init__(self, feature_size: int, hidden_size: int, attention_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(feature_size, attention_size)
        self.query = nn.Linear(hidden_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def project(self, features: Tensor) -> Tensor:
        """Return the keys (B, R, A) of features (B, R, F)."""
        return linear(features, self.key.weight, self.key.bias)

    def forward(self, hidden: Tensor, keys: Tensor) -> Tensor:
        """Return attention weights that sum to 1 over regions.

        hidden: (P, K, H), the previous LSTM outputs of K rows for each of P pictures.
        keys: (P, R, A), from `project`. Returns (P, K, R).
        """
        return self.attend(self.query(hidden), keys)

    def attend(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return the attention weights (P, K, R) of queries U h (P, K, A) and keys (P, R, A)."""
        scores = self._scores_by_sigmoid(query, keys) if by_onednn(keys) else self._scores(query, keys)
        exact = torch.promote_types(scores.dtype, torch.float32)
        return torch.softmax(scores, dim=-1, dtype=exact).to(keys.dtype)

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        energy = (keys.unsqueeze(1) + query.unsqueeze(2)).tanh_()  # (P, K, R, A)
        return torch.matmul(energy, self.score.weight[0])

    def _scores_by_sigmoid(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return the scores but for a constant, which softmax takes no notice of: tanh(x) = 2 sigmoid(2x) - 1.

        CPUs make sigmoids several times faster (see arithmetic.py). Pictures are taken some at a time.
        """
        score = 2 * self.score.weight[0]
        pictures = max(1, _BLOCK_NUMBERS // max(1, query.shape[1] * keys[0].numel()))
        blocks = zip((2 * query).split(pictures), (2 * keys).split(pictures), strict=True)
        return torch.cat(
            [torch.matmul((key.unsqueeze(1) + asked.unsqueeze(2)).sigmoid_(), score) for asked, key in blocks]
        )
