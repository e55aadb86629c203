"""Additive attention over the regions of a picture."""

import torch
from torch import Tensor, nn


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
        keys: Tensor = self.key(features)
        return keys

    def forward(self, hidden: Tensor, keys: Tensor) -> Tensor:
        """Return attention weights that sum to 1 over regions.

        hidden: (P, K, H), the previous LSTM outputs of K rows for each of P pictures.
        keys: (P, R, A), from `project`. Returns (P, K, R).
        """
        energy = (keys.unsqueeze(1) + self.query(hidden).unsqueeze(2)).tanh_()  # (P, K, R, A)
        scores = torch.matmul(energy, self.score.weight[0])
        exact = torch.promote_types(scores.dtype, torch.float32)
        return torch.softmax(scores, dim=-1, dtype=exact).to(energy.dtype)
