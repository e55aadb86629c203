"""What workers of a training tell each other, and what all of them must have alike, whatever each finds for itself."""

import logging
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from caption_ray.config import AskedPrecision, Precision
from caption_ray.device import resolve_precision

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


def all_reduce(values: Tensor) -> None:
    """Sum `values` over all workers, in place."""
    if world_size() > 1:
        dist.all_reduce(values)


def all_agree(answer: bool, device: torch.device) -> bool:
    """Tell whether every worker's answer is yes. Every worker must ask."""
    votes = torch.tensor(int(answer), device=device)
    all_reduce(votes)
    return int(votes) == world_size()


def broadcast_weights(model: nn.Module) -> None:
    """Give all workers the weights of the first, as DDP does where it is used."""
    if world_size() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def world_size() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shared_precision(asked: AskedPrecision, device: torch.device) -> Precision:
    """Return the number format in which all workers compute. Every worker must ask.

    'auto' gives another on other hardware, and gradients that are scaled, as those of fp16 are, cannot be summed up
    with others. Of workers that differ all take fp16 where a GPU wants it, else fp32. Raises UsageError as
    `resolve_precision` does.
    """
    found = sorted(set(gathered(resolve_precision(asked, device))))
    if len(found) == 1:
        return found[0]
    shared: Precision = "fp16" if "fp16" in found else "fp32"
    if dist.get_rank() == 0:
        logger.warning("the workers' hardware differs (%s): all compute in %s", ", ".join(found), shared)
    return shared


def from_first(value: Value) -> Value:
    """Return what the first worker brings. Every worker must ask."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: Value) -> list[Value]:
    """Return what all workers bring, in the order of their ranks. Every worker must ask."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values
