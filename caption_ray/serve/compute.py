"""What is done with a loaded model: verify it, describe it, and caption pictures in batches and word by word."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
from PIL import Image

from caption_ray.config import AskedPrecision
from caption_ray.data.images import to_square
from caption_ray.errors import BundleError
from caption_ray.inference import Captioner
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, Square
from caption_ray.serve.schemas import ModelAnswer

_WARM_UPS = (1, 2, 4, 8, 16)
"""Pictures of a batch, up to those that `BatchOptions` takes by default (see model/recording.py)."""


def load_captioner(location: str, precision: AskedPrecision = "auto") -> Captioner:
    """Load a bundle, verify it, and caption a grey picture with it, so that the first request finds it warmed up.

    On a GPU batches of several, too: the first of each size is recorded, which takes some 0.15 s. On a CPU the first
    batch of each size still takes some tens of milliseconds more (see model/fused_convolution.py).
    Raises BundleError where it is absent or damaged, or its numbers are no numbers.
    """
    # In a thread that ends, and with it the pool that OpenMP keeps for each that has computed (see engine.py).
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_load, location, precision).result()


def _load(location: str, precision: AskedPrecision) -> Captioner:
    captioner = Captioner.load(location, precision=precision)
    side = captioner.bundle.config.encoder.image_size
    grey = np.full((3, side, side), 127, dtype=np.uint8)
    for number in _WARM_UPS if captioner.device.type == "cuda" else _WARM_UPS[:1]:
        captions = captioner.caption([grey] * number)[0]
    if not math.isfinite(captions[0].log_probability):
        raise BundleError(f"{location}: a trial caption has no finite probability; the weights are spoilt: train again")
    return captioner


def model_id(captioner: Captioner) -> str:
    """Return the digest of the bundle that a captioner is of."""
    return captioner.bundle.manifest.digest


def describe(captioner: Captioner, loaded_at: datetime, refused: str | None) -> ModelAnswer:
    """Describe a model as GET /v1/model does."""
    bundle = captioner.bundle
    config = bundle.config
    return ModelAnswer(
        id=model_id(captioner),
        name=bundle.manifest.name,
        location=bundle.location,
        loaded_at=loaded_at,
        backbone=config.encoder.backbone,
        image_size=config.encoder.image_size,
        grid_side=config.encoder.image_size // 32,
        vocabulary_size=config.vocabulary_size,
        num_parameters=sum(parameter.numel() for parameter in bundle.model.parameters()),
        device=str(captioner.device),
        precision=captioner.precision,
        beam_width=config.decode.beam_width,
        max_words=config.decode.max_words,
        metrics=bundle.metrics,
        refused=refused,
    )


def caption_batch(captioner: Captioner, asked: Sequence[tuple[Square, int | None]]) -> list[CaptionedPicture]:
    """Return the captions of pictures, best first, each by the beam width asked for it, by default the bundle's."""
    decode = captioner.bundle.config.decode
    options = [decode.changed(beam_width=beam_width) for _, beam_width in asked]
    found = captioner.caption_each([fitted(captioner, picture) for picture, _ in asked], options)
    return [CaptionedPicture(captions=tuple(captions), model_id=model_id(captioner)) for captions in found]


def stream_words(captioner: Captioner, picture: Square) -> Iterator[GreedyWord | CaptionedPicture]:
    """Yield the words of the greedy caption as they are found, and at last the whole. Nothing runs before the first."""
    side = captioner.bundle.config.encoder.image_size // 32
    words = captioner.stream(fitted(captioner, picture), captioner.bundle.config.decode.max_words)
    while True:
        try:
            text, log_probability, attention = next(words)
        except StopIteration as end:
            yield CaptionedPicture(captions=(end.value,), model_id=model_id(captioner))
            return
        yield GreedyWord(text=text, log_probability=log_probability, attention=attention.numpy().reshape(side, side))


def fitted(captioner: Captioner, picture: Square) -> Square:
    """Return the picture in the model's own size.

    It has another where it was decoded for a model that has been replaced since, moments ago.
    """
    side = captioner.bundle.config.encoder.image_size
    if picture.shape[1] == side:
        return picture
    return to_square(Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))), side)
