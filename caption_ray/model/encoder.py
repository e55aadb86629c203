"""Pictures to region grids: a torchvision classifier without its head.

Shape letters: B pictures, S side in pixels, R = (S / 32) ** 2 regions, F features of a region.

torchvision is imported where it is used: it takes seconds, and workers that train on cached features need none of it.
"""

import hashlib
import textwrap

import torch
from torch import Tensor, nn

from caption_ray import storage
from caption_ray.config import EncoderConfig
from caption_ray.errors import UsageError

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A frozen or partly fine-tuned convolutional network, from uint8 pictures to region features.

    pictures: (B, 3, S, S) uint8, RGB. Returns (B, R, F), regions in row-major order of the grid.
    Batch-norm statistics are never updated: batches of captioning are small and their pictures few.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: nn.Module, num_features: int, image_size: int, finetune_stages: int) -> None:
        super().__init__()
        self.stages = stages
        self.num_features = num_features
        self.image_size = image_size
        self.grid_side = image_size // 32
        self.finetune_stages = finetune_stages
        # Not in the state dict: constants of torchvision's weights, not learned.
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1) * 255, persistent=False)
        self.requires_grad_(False)
        for stage in self._trained_stages():
            stage.requires_grad_(True)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        self.train(False)

    def _trained_stages(self) -> list[nn.Module]:
        stages = list(self.stages.children())
        return stages[len(stages) - self.finetune_stages :]

    def train(self, mode: bool = True) -> "Encoder":
        """Switch dropout and the like of fine-tuned stages; batch norm always stays in evaluation mode."""
        super().train(False)
        for stage in self._trained_stages():
            stage.train(mode)
            for module in stage.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the (B, R, F) region features of (B, 3, S, S) uint8 pictures."""
        normalised = (pictures.to(self.mean.dtype) - self.mean) / self.std
        grid: Tensor = self.stages(normalised.contiguous(memory_format=torch.channels_last))
        return grid.flatten(2).transpose(1, 2)


def fold_batch_norm(encoder: Encoder) -> Encoder:
    """Return a copy of a frozen encoder with batch norm folded into the convolutions: the same function, faster.

    Its outputs differ by rounding only.
    """
    from torch.fx.experimental.optimization import fuse

    from caption_ray.model.tracing import trace

    folded = fuse(trace(encoder.stages), no_trace=True).to(memory_format=torch.channels_last)
    return Encoder(folded, encoder.num_features, encoder.image_size, finetune_stages=0)


def build_encoder(config: EncoderConfig, load_weights: bool = True) -> Encoder:
    """Build the encoder that `config` names, with its weights.

    With `load_weights` false the weights are left random, for a caller that has a state dict at hand.
    Raises UsageError for an unknown backbone or weights that do not fit it.
    """
    import torchvision

    supported = [n for n in torchvision.models.list_models() if n.startswith(("resne", "wide_resnet"))]
    supported = [n for n in supported if "quantized" not in n] + ["mobilenet_v2"]
    if config.backbone not in supported:
        raise UsageError(f"encoder.backbone: {config.backbone!r} is not one of {', '.join(sorted(supported))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = torchvision.models.get_model(config.backbone, weights=None)
    if load_weights and config.weights != "none":
        _load_weights(network, config)
    stages, num_features = _split_stages(network)
    return Encoder(
        stages.to(memory_format=torch.channels_last),
        num_features,
        config.image_size,
        config.finetune_stages,
    )


def _split_stages(network: nn.Module) -> tuple[nn.Sequential, int]:
    """Return the network without pooling and classifier, as stem plus four (ResNet) or so stages, and F."""
    import torchvision

    if isinstance(network, torchvision.models.ResNet):
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        stages = nn.Sequential(stem, network.layer1, network.layer2, network.layer3, network.layer4)
        return stages, int(network.fc.in_features)
    blocks = list(network.features)  # type: ignore[arg-type]
    # MobileNetV2's blocks grouped at its strides, so that a stage means about what it means in a ResNet.
    groups = [blocks[:2], blocks[2:4], blocks[4:7], blocks[7:14], blocks[14:]]
    return nn.Sequential(*(nn.Sequential(*group) for group in groups)), int(network.last_channel)  # type: ignore[arg-type]


def _load_weights(network: nn.Module, config: EncoderConfig) -> None:
    if config.weights == "imagenet":
        import torchvision

        weights = torchvision.models.get_model_weights(config.backbone).DEFAULT
        try:
            network.load_state_dict(weights.get_state_dict(progress=True, check_hash=True))
        except (OSError, RuntimeError) as error:  # the latter for another digest
            raise UsageError(
                f"encoder.weights: could not download {weights} ({error}); give the path of a state dict, or 'none' "
                "for random weights; or download them where the internet is, with the same home: they are kept in "
                "~/.cache/torch"
            ) from error
        return
    path = storage.with_home(config.weights)
    if not path.is_file():
        raise UsageError(
            f"encoder.weights: {config.weights}: no such file; expected 'imagenet', 'none' or a torchvision "
            f"state dict of {config.backbone}"
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # pickle, zip and key errors: whatever it is, this file does not fit
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 400)
        raise UsageError(f"encoder.weights: {path}: not a state dict of {config.backbone} ({reason})") from error


def weights_digest(encoder: Encoder) -> str:
    """Return the SHA-256 over the names and values of an encoder's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
