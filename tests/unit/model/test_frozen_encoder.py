import pickle

import pytest
import torch
from encoders import noise, random_encoder
from livening import livened
from unrecorded import Unrecorded

from caption_ray.config import AskedPrecision, EncoderPrecision, Precision
from caption_ray.model import frozen_encoder, fused_convolution
from caption_ray.model.encoder import fold_batch_norm
from caption_ray.model.frozen_encoder import AT_A_TIME, FrozenEncoder


@pytest.mark.parametrize("num_pictures", [1, AT_A_TIME, AT_A_TIME + 1, 2 * AT_A_TIME + 3])
def test_frozen_encoder_gives_each_picture_its_features(num_pictures: int) -> None:
    encoder = livened(random_encoder("mobilenet_v2", image_size=64))
    frozen = FrozenEncoder(encoder)
    assert (frozen.image_size, frozen.grid_side, frozen.num_features) == (64, 2, 1280)
    pictures = noise(num_pictures, 64)
    with torch.no_grad():
        exact = encoder(pictures)
    found = pickle.loads(pickle.dumps(frozen)).on(torch.device("cpu"), "fp32")(pictures)  # as it comes to an actor
    assert found.shape == (num_pictures, 4, 1280)
    assert torch.allclose(found, exact, atol=1e-3 * float(exact.abs().max()))


def test_pass_recorded_for_several_numbers_of_pictures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Unrecorded(failing=frozenset({3}))
    monkeypatch.setattr(frozen_encoder, "records_on", lambda _: True)
    monkeypatch.setattr(frozen_encoder, "Recorder", lambda _: recorder)
    encoder = livened(random_encoder("resnet18", image_size=64))
    run, pictures = FrozenEncoder(encoder).on(torch.device("cpu"), "fp32"), noise(70, 64)
    with torch.no_grad():
        exact = encoder(pictures)
    found = []
    for first, last, recorded in ((0, 4, 1), (4, 7, 1), (7, 8, 2), (8, 10, 3), (10, 12, 3), (0, 70, 3), (0, 0, 3)):
        found.append((run(pictures[first:last]), exact[first:last]))  # none for two; more than 64 never
        assert recorder.count == recorded
    for mine, expected in found:  # the later ones have not been written over the earlier
        assert mine.shape == expected.shape
        assert torch.allclose(mine, expected, atol=1e-3 * float(exact.abs().max()))
    assert [entry.message.partition(":")[0] for entry in caplog.records] == ["passes of the encoder with 2 pictures"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_pictures", [1, 3, 70])
def test_recorded_pass_gives_each_picture_its_features(num_pictures: int) -> None:
    encoder = livened(random_encoder("resnet18", image_size=64))
    run = FrozenEncoder(encoder).on(torch.device("cuda"), "fp32")
    for seed in range(3):  # recorded once, and launched again on other pictures
        pictures = noise(num_pictures, 64) if not seed else noise(num_pictures, 64).flip(0, seed)
        with torch.no_grad():
            exact = encoder(pictures)
        assert torch.allclose(run(pictures).cpu(), exact, atol=1e-2 * float(exact.abs().max()))


def test_frozen_encoder_in_bf16_comes_near() -> None:
    encoder = livened(random_encoder("resnet18", image_size=64))
    found = FrozenEncoder(encoder).on(torch.device("cpu"), "bf16")(noise(5, 64))
    with torch.no_grad():
        exact = encoder(noise(5, 64))
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.05


@pytest.mark.skipif(not fused_convolution._HAS_ONEDNN_BF16, reason="this CPU or this torch has no bf16 by oneDNN")
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v2"])
def test_mixed_lies_between_single_precision_and_bf16(backbone: str) -> None:
    encoder, cpu = livened(random_encoder(backbone, image_size=64)), torch.device("cpu")
    with torch.no_grad():
        exact = encoder(noise(9, 64))

    def error(precision: EncoderPrecision) -> float:
        found = FrozenEncoder(encoder).on(cpu, precision)(noise(9, 64))
        assert found.dtype == torch.float32
        return float((found - exact).norm() / exact.norm())

    assert error("fp32") < 1e-3
    assert 10 * error("fp32") < error("mixed") < error("bf16")
    fused = fused_convolution.fuse_convolutions(fold_batch_norm(encoder), torch.float32, num_rounded=3)
    found = [(name, part.dtype) for name, part in fused.stages.named_modules() if name.startswith("fused__")]
    assert len(found) > 15
    assert all((dtype == torch.bfloat16) is (int(name.split("_")[2]) < 3) for name, dtype in found)


def test_mixed_is_fp32_where_nothing_computes_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_convolution, "_HAS_ONEDNN_BF16", False)
    frozen, cpu = FrozenEncoder(livened(random_encoder("resnet18", image_size=64))), torch.device("cpu")
    assert torch.equal(frozen.on(cpu, "mixed")(noise(3, 64)), frozen.on(cpu, "fp32")(noise(3, 64)))


def test_weights_rounded_once_are_those_that_autocast_rounds_in_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs, where nothing else lays weights out."""
    monkeypatch.setattr(frozen_encoder, "fuse_convolutions", lambda folded, *_: folded)
    encoder = livened(random_encoder("resnet18", image_size=64))
    folded = fold_batch_norm(encoder)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = folded(noise(3, 64)).float()
    frozen = FrozenEncoder(encoder)
    assert torch.equal(frozen.on(torch.device("cpu"), "bf16")(noise(3, 64)), expected)
    with torch.no_grad():
        exact = folded(noise(3, 64))
    assert torch.equal(frozen.on(torch.device("cpu"), "fp32")(noise(3, 64)), exact)  # its own weights were not rounded


@pytest.mark.parametrize(
    ("asked", "found", "backbone", "expected"),
    [
        ("auto", "bf16", "mobilenet_v2", "fp32"),
        ("bf16", "bf16", "mobilenet_v2", "bf16"),
        ("auto", "bf16", "resnet50", "bf16"),
        ("auto", "fp16", "mobilenet_v2", "fp16"),
        ("auto", "fp32", "resnet50", "fp32"),
    ],
)
def test_auto_does_not_round_mobilenets_features_to_bf16(
    asked: AskedPrecision, found: Precision, backbone: str, expected: Precision
) -> None:
    assert frozen_encoder.encoder_precision(asked, found, backbone) == expected
