from pathlib import Path

import pytest
import torch
from encoders import noise, random_encoder
from livening import livened
from torch import nn

from caption_ray.config import EncoderConfig
from caption_ray.errors import UsageError
from caption_ray.model import fused_convolution
from caption_ray.model.encoder import Encoder, build_encoder, fold_batch_norm, weights_digest


@pytest.mark.parametrize(("backbone", "num_features"), [("resnet18", 512), ("mobilenet_v2", 1280)])
def test_shapes(backbone: str, num_features: int) -> None:
    encoder = random_encoder(backbone, image_size=96)
    assert (encoder.num_features, encoder.grid_side) == (num_features, 3)
    assert encoder(noise(2, 96)).shape == (2, 9, num_features)


def test_normalisation_by_hand() -> None:
    encoder = Encoder(nn.Sequential(nn.Identity()), num_features=3, image_size=32, finetune_stages=0)
    pictures = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 1)
    # 124 - 0.485 * 255 = 0.325, over 0.229 * 255 = 58.395; and so on
    expected = torch.tensor([0.325 / 58.395, -0.28 / 57.12, 0.47 / 57.375])
    assert torch.allclose(encoder(pictures), expected.expand(1, 2, 3), atol=1e-6)


def test_regions_come_row_by_row() -> None:
    encoder = Encoder(nn.Sequential(nn.Identity()), num_features=3, image_size=32, finetune_stages=0)
    pictures = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    red = encoder(pictures)[0, :, 0] * 58.395 + 0.485 * 255
    assert red.tolist() == pytest.approx([0, 1, 2, 3, 4, 5], abs=1e-4)


@pytest.mark.parametrize("finetune_stages", [0, 1, 3])
def test_only_the_last_stages_train(finetune_stages: int) -> None:
    encoder = random_encoder("resnet18", finetune_stages=finetune_stages)
    assert isinstance(encoder.stages, nn.Sequential)
    for number, stage in enumerate(encoder.stages):
        weights = {name: weight.requires_grad for name, weight in stage.named_parameters()}
        norms = {name for name, module in stage.named_modules() if isinstance(module, nn.BatchNorm2d)}
        for name, trains in weights.items():
            assert trains == (number >= 5 - finetune_stages and name.rpartition(".")[0] not in norms)


def test_batch_norm_never_learns_statistics() -> None:
    encoder = random_encoder("mobilenet_v2", finetune_stages=1, image_size=32).train()
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    encoder(noise(3, 32))
    assert len(before) == 52
    assert not any(norm.training for norm in norms)
    assert all(torch.equal(old, norm.running_mean) for old, norm in zip(before, norms, strict=True))
    assert [stage.training for stage in encoder.stages.children()] == [False, False, False, False, True]


def test_folding_batch_norm_changes_nothing_but_rounding() -> None:
    encoder = random_encoder("resnet18", image_size=64)
    torch.manual_seed(0)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight.data, module.bias.data):
                assert values is not None
                values.add_(torch.randn_like(values) * 0.2)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0)
    pictures = noise(2, 64)
    folded = fold_batch_norm(encoder)
    expected = encoder(pictures)
    assert torch.allclose(folded(pictures), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


def test_bf16_comes_near() -> None:
    """Pictures are normalised in single precision, so that only what the layers round is lost."""
    encoder = fold_batch_norm(random_encoder("resnet18", image_size=64))
    pictures = noise(2, 64)
    expected = encoder(pictures)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder(pictures)
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).norm()) < 0.02 * float(expected.norm())


def test_random_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    one = weights_digest(random_encoder("mobilenet_v2", seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert weights_digest(random_encoder("mobilenet_v2", seed=3)) == one
    assert weights_digest(random_encoder("mobilenet_v2", seed=4)) != one


def test_weights_digest_sees_the_smallest_change() -> None:
    encoder = random_encoder("mobilenet_v2")
    before = weights_digest(encoder)
    next(encoder.parameters()).data[0, 0, 0, 0] += 1e-3
    assert weights_digest(encoder) != before


def test_weights_from_a_file(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(8)
    network = torchvision.models.get_model("mobilenet_v2", weights=None)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    encoder = build_encoder(EncoderConfig(backbone="mobilenet_v2", weights=str(path)))
    assert torch.equal(next(encoder.parameters()), next(network.parameters()))

    with pytest.raises(UsageError, match=r"weights\.pth: not a state dict of resnet18"):
        build_encoder(EncoderConfig(backbone="resnet18", weights=str(path)))
    torch.save({"model": network.state_dict()}, path)
    with pytest.raises(UsageError, match=r"Unexpected key.*\bmodel\b|Missing key.*features"):
        build_encoder(EncoderConfig(backbone="mobilenet_v2", weights=str(path)))


@pytest.mark.parametrize("content", ["<html>404</html>", ""])
def test_file_that_is_no_state_dict(content: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"weights\.pth: not a state dict of mobilenet_v2"):
        build_encoder(EncoderConfig(backbone="mobilenet_v2", weights=str(path)))


def test_absent_file() -> None:
    with pytest.raises(UsageError, match=r"encoder\.weights: absent\.pth: no such file"):
        build_encoder(EncoderConfig(backbone="resnet18", weights="absent.pth"))


@pytest.mark.parametrize("backbone", ["resnet19", "vgg16", "quantized_resnet18"])
def test_unknown_backbone(backbone: str) -> None:
    with pytest.raises(UsageError, match=f"encoder.backbone: '{backbone}' is not one of .*resnet50"):
        random_encoder(backbone)


def is_bf16_fused() -> bool:
    return fused_convolution._HAS_ONEDNN_BF16


@pytest.mark.skipif(not is_bf16_fused(), reason="this CPU or this torch has no bf16 by oneDNN")
@pytest.mark.parametrize(
    ("backbone", "left"),
    [("resnet18", {"MaxPool2d", "Module"}), ("resnet50", {"MaxPool2d", "Module"}), ("mobilenet_v2", set())],
)
def test_fused_convolutions_give_the_features_within_bf16s_rounding(backbone: str, left: set[str]) -> None:
    encoder = random_encoder(backbone, image_size=64)
    folded = fold_batch_norm(encoder)
    fused = fused_convolution.fuse_convolutions(folded)
    pictures = noise(3, 64)
    with torch.no_grad():
        exact, found = encoder(pictures), fused(pictures)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = folded(pictures)
    assert found.dtype == torch.bfloat16
    # Nothing of a ReLU, a ReLU6, a sum or a shortcut is lost: as near to the exact features as autocast is.
    error, by_autocast = (((features.float() - exact).norm() / exact.norm()).item() for features in (found, rounded))
    assert error < 0.05
    assert error < 1.5 * by_autocast
    names = {type(module).__name__ for module in fused.stages.modules()}
    assert names == {"FusedConvolution", "GraphModule"} | left


@pytest.mark.skipif(not is_bf16_fused(), reason="this CPU or this torch has no bf16 by oneDNN")
def test_fused_encoder_takes_batches_of_any_size_and_leaves_its_source_alone() -> None:
    folded = fold_batch_norm(random_encoder("resnet18", image_size=64))
    pictures = noise(5, 64)
    with torch.no_grad():
        before = folded(pictures)
        fused = fused_convolution.fuse_convolutions(folded)
        whole, parts = fused(pictures), torch.cat([fused(pictures[:1]), fused(pictures[1:])])
        assert torch.equal(folded(pictures), before)
    assert torch.allclose(whole.float(), parts.float(), rtol=0.05, atol=0.05 * float(whole.float().std()))


@pytest.mark.skipif(not fused_convolution._HAS_ONEDNN, reason="no oneDNN for this CPU")
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2"])
def test_fused_convolutions_give_the_features_in_single_precision(backbone: str) -> None:
    encoder = livened(random_encoder(backbone, image_size=64))
    fused = fused_convolution.fuse_convolutions(fold_batch_norm(encoder), torch.float32)
    pictures = noise(3, 64)
    with torch.no_grad():
        exact, found = encoder(pictures), fused(pictures)
    assert found.dtype == torch.float32
    assert float((found - exact).norm() / exact.norm()) < 1e-3  # a lost ReLU, ReLU6 or sum would be tenths
    kinds = {type(module) for module in fused.stages.modules()}
    assert not kinds & {nn.Conv2d, nn.ReLU, nn.ReLU6}
    assert {node.op for node in fused.stages.graph.nodes} == {"placeholder", "call_module", "output"}, "a sum is left"


@pytest.mark.skipif(not fused_convolution._HAS_ONEDNN, reason="no oneDNN for this CPU")
def test_fused_encoder_is_the_same_for_any_number_of_pictures_and_of_threads() -> None:
    folded = fold_batch_norm(livened(random_encoder("resnet18", image_size=64)))
    fused = fused_convolution.fuse_convolutions(folded, torch.float32)
    pictures, threads = noise(6, 64), torch.get_num_threads()
    with torch.no_grad():
        exact = folded(pictures)
        try:
            for number in (1, 2, 1):  # layouts of the first are still there for the last
                torch.set_num_threads(number)
                for size in (1, 2, 6):
                    found = torch.cat([fused(part) for part in pictures.split(size)])
                    assert torch.allclose(found, exact, atol=1e-3 * float(exact.abs().max())), (number, size)
        finally:
            torch.set_num_threads(threads)
    for module in fused.stages.modules():
        if isinstance(module, fused_convolution.FusedConvolution):
            assert len(module._laid_out) == 6
            assert len(module._layouts) < 6, "each number of pictures has a copy of the weights"


class _Overlapping(nn.Module):
    """Sums whose first term is still read: by the convolution itself, and afterwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = self.first(values)
        values = values + self.second(values)
        return values * (values + self.third(values.neg()))


@pytest.mark.skipif(not fused_convolution._HAS_ONEDNN, reason="no oneDNN for this CPU")
def test_fusing_overwrites_nothing_that_is_still_read() -> None:
    encoder = Encoder(nn.Sequential(_Overlapping()), num_features=3, image_size=32, finetune_stages=0)
    fused = fused_convolution.fuse_convolutions(fold_batch_norm(encoder), torch.float32)
    with torch.no_grad():
        assert torch.allclose(fused(noise(2, 32)), encoder(noise(2, 32)), atol=1e-4)
