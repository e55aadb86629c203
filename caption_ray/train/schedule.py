"""Learning rate as a function of how far a run is, so that it depends on neither workers nor restarts."""

import math

from caption_ray.config import OptimizerConfig

_FLOOR = 0.01
_ONECYCLE_RISE = 0.3


def learning_rate_factor(config: OptimizerConfig, progress: float) -> float:
    """Return the share of the peak learning rate at `progress`, 0 at the first step and 1 at the last.

    cosine: linear warm-up, then half a cosine down to 1 % (Loshchilov and Hutter 2017, without restarts).
    onecycle: half a cosine from 4 % up, another down to 1 % (after Smith and Topin 2019).
    """
    progress = min(max(progress, 0.0), 1.0)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        if progress < config.warmup_share:
            return max(progress / config.warmup_share, _FLOOR)
        return _glide(1.0, _FLOOR, (progress - config.warmup_share) / (1 - config.warmup_share))
    if progress < _ONECYCLE_RISE:
        return _glide(0.04, 1.0, progress / _ONECYCLE_RISE)
    return _glide(1.0, _FLOOR, (progress - _ONECYCLE_RISE) / (1 - _ONECYCLE_RISE))


def _glide(start: float, end: float, share: float) -> float:
    """Return half a cosine's way from start to end."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
