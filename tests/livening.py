"""Encoders with random weights that tell pictures apart."""

import torch
from torch import nn

from caption_ray.model.encoder import Encoder


def livened(encoder: Encoder) -> Encoder:
    """Return the encoder with batch norm that keeps all layers' values near one, as one that has learned does.

    With statistics of nothing all pictures have the same features.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(-0.5, 0.5)
                module.register_forward_hook(_normalise)
        encoder(torch.randint(0, 256, (3, 3, encoder.image_size, encoder.image_size), dtype=torch.uint8))
    for module in encoder.modules():
        module._forward_hooks.clear()
    return encoder


def _normalise(norm: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    (values,) = inputs
    norm.running_mean.copy_(values.mean((0, 2, 3)))
    norm.running_var.copy_(values.var((0, 2, 3)) + 4 * values.var())  # no channel is all but constant
    return nn.functional.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
