import io

import pytest
from PIL import Image

from caption_ray.config import EncoderConfig
from caption_ray.model.encoder import build_encoder
from caption_ray.train.setup import measure_features


def picture(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


def test_statistics_of_a_single_region_are_numbers() -> None:
    """One picture of one region: it is the mean, and nothing moves."""
    encoder = build_encoder(EncoderConfig(backbone="resnet18", weights="none", image_size=32))
    statistics = measure_features(encoder, [picture(200)])
    assert len(statistics.mean) == encoder.num_features
    assert statistics.deviation == pytest.approx([1e-3] * encoder.num_features)


def test_statistics_of_two_regions() -> None:
    """Of two numbers the deviation is half their difference, the mean half their sum."""
    encoder = build_encoder(EncoderConfig(backbone="resnet18", weights="none", image_size=32))
    dark, bright = (measure_features(encoder, [picture(grey)]).mean for grey in (10, 240))
    both = measure_features(encoder, [picture(10), picture(240)])
    assert both.mean == pytest.approx([(a + b) / 2 for a, b in zip(dark, bright, strict=True)], rel=1e-4, abs=1e-5)
    halves = [max(abs(a - b) / 2, 1e-3) for a, b in zip(dark, bright, strict=True)]
    assert both.deviation == pytest.approx(halves, rel=1e-4, abs=1e-5)
