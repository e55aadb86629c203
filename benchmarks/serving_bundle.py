"""A bundle of ResNet50's sizes to serve, made without training: `make_bundle`.

Its weights are random, so three things are seen to that training would bring about. Batch norm has statistics of
pictures, and residual branches are small, or rounding would grow from layer to layer; the output layer is sharp, or all
words would be about as likely and rounding would choose among them; and captions have as many words as Flickr8k's.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from caption_ray.bundle import BundleConfig, build_model, save_bundle
from caption_ray.config import EncoderConfig
from caption_ray.data.images import decode_squares
from caption_ray.presets import PRESETS
from caption_ray.special_ids import END_ID
from caption_ray.text.vocabulary import build_vocabulary

_RESIDUAL_SCALE = 0.2
_SHARPNESS = 30.0
_NUM_WORDS = 2_500
_CAPTION_WORDS = 12


@torch.no_grad()
def make_bundle(folder: str, preset: str, pictures: Sequence[bytes], seed: int) -> None:
    """Write a bundle of the decoder that `preset` names on ResNet50; `pictures` are files to take statistics of."""
    experiment = PRESETS[preset]()
    torch.manual_seed(seed)
    vocabulary = build_vocabulary([[f"word{number}"] for number in range(_NUM_WORDS)], min_count=1)
    config = BundleConfig(
        encoder=EncoderConfig(backbone="resnet50", weights="none", seed=seed),
        model=experiment.model,
        decode=experiment.decode.changed(max_words=_CAPTION_WORDS),
        num_features=2048,
        vocabulary_size=len(vocabulary),
    )
    model = build_model(config)
    assert model.encoder is not None
    for module in model.encoder.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.fill_(_RESIDUAL_SCALE)
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = None  # statistics are the plain mean over batches
    squares = torch.from_numpy(decode_squares(pictures, config.encoder.image_size))
    model.encoder(squares)
    features = model.eval().features(squares)
    if config.model.standardise_features:
        deviation = features.std((0, 1)).clamp_min(1e-3)
        model.decoder.set_feature_statistics(features.mean((0, 1)).tolist(), deviation.tolist())
    model.decoder.output.weight.mul_(_SHARPNESS)
    model.decoder.output.bias[END_ID] = -1e4
    save_bundle(
        folder, name=preset, data_digest="0" * 64, config=config, vocabulary=vocabulary, model=model, metrics={}
    )
