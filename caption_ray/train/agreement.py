"""What all workers of a training must have alike, whatever each of them finds for itself."""

import logging
from typing import TypeVar

import torch
import torch.distributed as dist

from caption_ray.config import AskedPrecision, Precision
from caption_ray.device import resolve_precision

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


def shared_precision(asked: AskedPrecision, device: torch.device) -> Precision:
    """Return the number format in which all workers compute. Every worker must ask.

    'auto' gives another on other hardware, and gradients that are scaled, as those of fp16 are, cannot be summed up
    with others. Of workers that differ all take fp16 where a GPU wants it, else fp32. Raises UsageError as
    `resolve_precision` does.
    """
    found = sorted(set(_gathered(resolve_precision(asked, device))))
    if len(found) == 1:
        return found[0]
    shared: Precision = "fp16" if "fp16" in found else "fp32"
    if dist.get_rank() == 0:
        logger.warning("the workers' hardware differs (%s): all compute in %s", ", ".join(found), shared)
    return shared


def from_first(value: Value) -> Value:
    """Return what the first worker brings. Every worker must ask."""
    if not _are_several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _gathered(value: Value) -> list[Value]:
    if not _are_several():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _are_several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
