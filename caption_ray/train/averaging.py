"""Weights averaged over the steps of training."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from caption_ray.model.caption_model import CaptionModel
from caption_ray.train.shared_weights import SharedWeights


class MovingAverage(AveragedModel):
    """An exponential moving average of a model's weights.

    At the n-th step the decay is min(`decay`, (1 + n) / (10 + n)): the first epochs' average would else be mostly the
    weights that training started from. Differs from torch's own in that a step never waits for the GPU, and in that of
    shared weights each worker averages its part.
    """

    def __init__(self, model: CaptionModel, decay: float, shared: SharedWeights | None = None) -> None:
        super().__init__(model)
        self._decay = decay
        self._parts: tuple[list[Tensor], list[Tensor]] | None = None
        """Averages and weights of this worker's part."""
        if shared is not None:
            self._parts = shared.move_average(self.module), shared.own(shared.weights)

    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's weights into the average; at first, be as they are."""
        num_averaged = int(self.n_averaged)  # on the CPU, wherever the weights are
        share = min(self._decay, (1 + num_averaged) / (10 + num_averaged)) if num_averaged else 0.0
        with torch.no_grad():
            averages, weights = self._parts or (list(self.module.parameters()), list(model.parameters()))
            if averages:  # with as many workers as a small model has no parts for some have none
                torch._foreach_lerp_(averages, weights, 1 - share)
            for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
                average.copy_(value)
        self.n_averaged += 1


def average_weights(model: CaptionModel, decay: float, shared: SharedWeights | None = None) -> MovingAverage | None:
    """Return an exponential moving average of the weights, or None where the decay is 0."""
    return MovingAverage(model, decay, shared) if decay else None
