"""A stepper over a small decoder of region features, for tests here and for the processes that they start."""

from collections.abc import Callable
from typing import Any

import torch

from caption_ray.config import Experiment, ModelConfig, OptimizerConfig, TrainingConfig
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder
from caption_ray.train.averaging import average_weights
from caption_ray.train.optimizer import build_optimizer
from caption_ray.train.shared_weights import SharedWeights
from caption_ray.train.steps import Stepper, idle_batch, make_scaler

REGIONS, FEATURES, WORDS = 3, 5, 11


def build_stepper(
    *,
    hidden_size: int = 7,
    plain_sgd: bool = False,
    dropout: float = 0.5,
    max_grad_norm: float = 1e9,
    double: bool = False,
    share: Callable[[CaptionModel], SharedWeights | None] = lambda _: None,
    **training: Any,
) -> Stepper:
    """Build a stepper, always from the same seed; `training` are fields of TrainingConfig.

    share: puts the weights where all workers see them.
    """
    settings = Experiment(
        model=ModelConfig(
            embedding_size=4, hidden_size=hidden_size, attention_size=2, dropout=0.0 if plain_sgd else dropout
        ),
        optimizer=OptimizerConfig(learning_rate=0.01, weight_decay=0.1, max_grad_norm=max_grad_norm),
        training=TrainingConfig.model_validate(training),
    )
    torch.manual_seed(0)
    model = CaptionModel(None, Decoder(settings.model, FEATURES, WORDS)).train()
    if double:
        model = model.double()
    cpu = torch.device("cpu")
    shared = share(model)
    optimizer: torch.optim.Optimizer = build_optimizer(model, settings.optimizer, shared)
    if plain_sgd:  # a step then changes the weights by minus the gradient
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Stepper(
        model=model,
        wrapped=model,
        optimizer=optimizer,
        scaler=make_scaler("fp32", cpu),
        average=average_weights(model, settings.training.average_decay, shared),
        settings=settings,
        precision="fp32",
        device=cpu,
        idle=idle_batch((REGIONS, FEATURES), torch.float32),
        shared=shared,
    )
