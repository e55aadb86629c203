"""The optimiser of a training: what it steps, at which rates, and the part of it that one worker of several does."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from caption_ray.config import OptimizerConfig
from caption_ray.model.caption_model import CaptionModel
from caption_ray.train.shared_weights import SharedWeights, cut, trained


def build_optimizer(
    model: CaptionModel, config: OptimizerConfig, shared: SharedWeights | None = None
) -> torch.optim.AdamW:
    """Return AdamW over what trains: decoder matrices (with weight decay), other decoder weights, encoder stages.

    Each group keeps its peak rate under "peak"; `set_learning_rate` scales it.
    shared: where the weights are, if this worker is to update its part of them alone.
    """
    decoder = trained(model.decoder)
    groups = (
        (decoder_matrices := [weight for weight in decoder if weight.dim() > 1], config.learning_rate, True),
        ([weight for weight in decoder if weight.dim() <= 1], config.learning_rate, False),
        (trained(model.encoder or nn.Module()), config.encoder_learning_rate, True),
    )
    assert decoder_matrices, "a decoder without matrices"
    described = [
        {"params": weights, "lr": rate, "peak": rate, "weight_decay": config.weight_decay if decayed else 0.0}
        for weights, rate, decayed in groups
        if weights
    ]
    if shared is not None:
        return ShardedAdamW(described, config.betas, shared)
    return torch.optim.AdamW(described, betas=config.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


class ShardedAdamW(torch.optim.AdamW):
    """AdamW that updates this worker's parts of shared weights; its moments are shared, too.

    So its state is, on every worker, that of an AdamW which updates all, and either goes on from the other's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], shared: SharedWeights) -> None:
        super().__init__(groups, betas=betas, fused=True)
        self._parts: dict[Tensor, slice] = dict(zip(shared.weights, shared.shard, strict=True))
        self._moments = dict(zip(shared.weights, shared.moments(), strict=True))
        self._put_moments()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parts, by what their gradients are."""
        assert closure is None
        for group in self.param_groups:
            own = [weight for weight in group["params"] if self._parts[weight].start < self._parts[weight].stop]
            if not own:
                continue
            states = [self.state[weight] for weight in own]
            parts = [self._parts[weight] for weight in own]
            adamw(
                cut(own, parts),
                cut((weight.grad for weight in own), parts),
                cut((state["exp_avg"] for state in states), parts),
                cut((state["exp_avg_sq"] for state in states), parts),
                [],
                [state["step"].clone() for state in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        for state in self.state.values():  # those of other workers' parts alike
            state["step"] += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take another's state; every worker the same."""
        super().load_state_dict(state_dict)
        for weight, moments in self._moments.items():
            taken = self.state[weight]
            for moment, name in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
                moment.copy_(taken.get(name, torch.zeros(())))
        self._put_moments()

    def _put_moments(self) -> None:
        for weight, (mean, square) in self._moments.items():
            step = self.state[weight].get("step", torch.zeros(()))
            self.state[weight] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
