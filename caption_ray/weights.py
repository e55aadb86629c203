"""Tensors by name, as the bytes of a safetensors file: how all weights are kept, since it runs no code when loaded."""

from collections.abc import Mapping

import safetensors.torch
from torch import Tensor


def to_safetensors(weights: Mapping[str, Tensor]) -> bytes:
    """Return the file's content; of weights that share memory, each must be there once."""
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
