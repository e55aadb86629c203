import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from livening import livened
from threads import computing_with

from caption_ray.bundle import BundleConfig, build_model, save_bundle
from caption_ray.config import DecodeOptions, EncoderConfig, ModelConfig
from caption_ray.text.vocabulary import SPECIAL_WORDS, Vocabulary

# A deadline would fail tests on a busy machine.
settings.register_profile("caption_ray", deadline=None)
settings.load_profile("caption_ray")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread, in child processes too: tensors are tiny, and threads wait for each other."""
    with computing_with(1), pytest.MonkeyPatch.context() as patch:
        if "OMP_NUM_THREADS" not in os.environ:
            patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def tiny_vocabulary() -> Vocabulary:
    return Vocabulary((*SPECIAL_WORDS, "a", "dog", "runs", "on", "grass", "red", "ball"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> Path:
    """A bundle with an untrained model of 2x2 regions and seven words; not to be changed."""
    config = BundleConfig(
        encoder=EncoderConfig(backbone="mobilenet_v2", weights="none", image_size=64),
        model=ModelConfig(embedding_size=3, hidden_size=5, attention_size=2, tie_embeddings=False),
        decode=DecodeOptions(beam_width=4, max_words=6),
        num_features=1280,
        vocabulary_size=len(tiny_vocabulary),
    )
    torch.manual_seed(0)
    model = build_model(config)
    assert model.encoder is not None
    livened(model.encoder)
    with torch.no_grad():  # some spread between words, and ends before `max_words` for some pictures
        model.decoder.output.weight.mul_(6.0)
        model.decoder.output.bias[2] = -0.5
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    save_bundle(
        str(folder),
        name="tiny",
        data_digest="ab" * 32,
        config=config,
        vocabulary=tiny_vocabulary,
        model=model,
        metrics={"bleu_4": 0.125, "epoch": 3},
    )
    return folder
