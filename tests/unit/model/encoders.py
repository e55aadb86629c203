"""Encoders with random weights, for tests."""

import torch

from caption_ray.config import EncoderConfig
from caption_ray.model.encoder import Encoder, build_encoder


def random_encoder(backbone: str, **settings: int) -> Encoder:
    return build_encoder(EncoderConfig(backbone=backbone, weights="none", **settings))  # type: ignore[arg-type]


def noise(num_pictures: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_pictures, 3, side, side), dtype=torch.uint8, generator=generator)
