"""An untrained model for tests that look at attention: sharp, unlike from word to word, and made in a second."""

import torch

from caption_ray.bundle import Bundle, BundleConfig, BundleManifest, build_model
from caption_ray.config import DecodeOptions, EncoderConfig, ModelConfig
from caption_ray.data.batches import stack_pictures
from caption_ray.data.images import decode_square
from caption_ray.inference import Captioner
from caption_ray.serve.example_pictures import FOLDER
from caption_ray.special_ids import END_ID
from caption_ray.text.vocabulary import Vocabulary


def sharp_captioner(vocabulary: Vocabulary) -> Captioner:
    """Return a captioner of 7x7 regions that gives the examples several words and peaked maps."""
    config = BundleConfig(
        encoder=EncoderConfig(backbone="resnet18", weights="none", image_size=224),
        model=ModelConfig(embedding_size=8, hidden_size=16, attention_size=8),
        decode=DecodeOptions(beam_width=4, max_words=6),
        num_features=512,
        vocabulary_size=len(vocabulary),
    )
    torch.manual_seed(4)
    model = build_model(config).eval()
    pictures = [decode_square(path.read_bytes(), 224) for path in sorted(FOLDER.glob("*.jpg"))]
    decoder, attention = model.decoder, model.decoder.attention
    with torch.no_grad():
        # Random features are alike everywhere: spread their keys around 0.
        keys = attention.project(model.features(stack_pictures(pictures)))
        gain = 3 / keys.std((0, 1))
        attention.key.bias.copy_((attention.key.bias - keys.mean((0, 1))) * gain)
        attention.key.weight.mul_(gain[:, None])
        attention.query.weight.mul_(8)
        attention.score.weight.mul_(4)
        decoder.output.weight.mul_(12)
        decoder.output.bias[END_ID] = -1
    manifest = BundleManifest(name="sharp", data_digest="", files={})
    metrics = {"bleu_4": 0.125, "cider": 0.5}
    bundle = Bundle(location="", config=config, vocabulary=vocabulary, model=model, metrics=metrics, manifest=manifest)
    return Captioner(bundle)
