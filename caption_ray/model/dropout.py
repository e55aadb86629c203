"""Dropout that is drawn fast on CPUs."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014), scaled in training so that its mean is the input.

    Differs from `nn.Dropout` in how a CPU draws: by `uniform_`, which takes a fifth of `bernoulli_`'s time.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` (any shape), each 0 with probability p, and else divided by 1 - p."""
        if not self.training or self.p == 0 or values.device.type != "cpu":
            return super().forward(values)
        kept = torch.rand_like(values, dtype=torch.float32) >= self.p
        return values * kept.to(values.dtype).mul_(1 / (1 - self.p) if self.p < 1 else 0.0)
