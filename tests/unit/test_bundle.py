import hashlib
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

from caption_ray.bundle import (
    BundleConfig,
    build_model,
    is_whole,
    kept_location,
    load_bundle,
    model_card,
    read_manifest,
    save_bundle,
)
from caption_ray.config import DecodeOptions, EncoderConfig, ModelConfig
from caption_ray.data.images import PREPROCESSING
from caption_ray.errors import BundleError
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoding import beam_search
from caption_ray.text.vocabulary import Vocabulary

FILES = ["README.md", "config.json", "metrics.json", "model.safetensors", "vocabulary.json"]


def found_ids(model: CaptionModel) -> list[list[int]]:
    """Return what the model says of two fixed pictures."""
    pictures = torch.arange(2 * 3 * 64 * 64).remainder(251).to(torch.uint8).view(2, 3, 64, 64)
    with torch.no_grad():
        features = model.features(pictures)
    found = beam_search(model.decoder, features, DecodeOptions(beam_width=3, max_words=6))
    return [list(hypothesis.ids) for hypotheses in found for hypothesis in hypotheses]


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def seal(folder: Path, file: str) -> None:
    """Make the manifest agree with a file that a test has changed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_loaded_bundle_is_what_was_saved(tiny_bundle: Path, tiny_vocabulary: Vocabulary) -> None:
    bundle = load_bundle(str(tiny_bundle))
    assert bundle.vocabulary == tiny_vocabulary
    assert bundle.metrics == {"bleu_4": 0.125, "epoch": 3}
    assert bundle.config.decode == DecodeOptions(beam_width=4, max_words=6)
    assert (bundle.manifest.name, bundle.manifest.data_digest) == ("tiny", "ab" * 32)
    assert not bundle.model.training
    assert "| bleu_4 | 0.1250 |" in (tiny_bundle / "README.md").read_text()


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_captions_alike(tied: bool, tiny_vocabulary: Vocabulary, tmp_path: Path) -> None:
    config = BundleConfig(
        encoder=EncoderConfig(backbone="mobilenet_v2", weights="none", image_size=64, seed=5),
        model=ModelConfig(embedding_size=5, hidden_size=5, attention_size=2, tie_embeddings=tied),
        decode=DecodeOptions(),
        num_features=1280,
        vocabulary_size=len(tiny_vocabulary),
    )
    torch.manual_seed(3)
    model = build_model(config).eval()
    save_bundle(
        str(tmp_path),
        name="x",
        data_digest="",
        config=config,
        vocabulary=tiny_vocabulary,
        model=model,
        metrics={},
    )
    loaded = load_bundle(str(tmp_path)).model
    assert all(torch.equal(mine, loaded.state_dict()[name]) for name, mine in model.state_dict().items())
    assert found_ids(loaded) == found_ids(model)
    assert (loaded.decoder.output.weight is loaded.decoder.embedding.weight) is tied


def test_a_bundle_is_six_files_and_no_pickle(tiny_bundle: Path) -> None:
    assert sorted(path.name for path in tiny_bundle.iterdir()) == sorted([*FILES, "manifest.json"])
    assert sorted(read_manifest(str(tiny_bundle)).files) == FILES
    weights = (tiny_bundle / "model.safetensors").read_bytes()
    (header_size,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + header_size])
    assert header["decoder.output.weight"]["shape"] == [11, 5]
    for name in ("config.json", "metrics.json", "vocabulary.json", "manifest.json"):
        assert json.loads((tiny_bundle / name).read_text())


@pytest.mark.parametrize("file", FILES)
def test_changed_file_is_named(copied: Path, file: str) -> None:
    content = bytearray((copied / file).read_bytes())
    content[-3] ^= 1
    (copied / file).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{file}: not what manifest\.json says"):
        load_bundle(str(copied))


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_named(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(BundleError, match=f"{file}: missing") as caught:
        load_bundle(str(copied))
    assert caught.value.exit_code == 1


def test_folder_without_a_manifest(copied: Path) -> None:
    (copied / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"no manifest\.json: not a bundle"):
        load_bundle(str(copied))


@pytest.mark.parametrize("name", ["absent", "photo.jpg"])
def test_what_is_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(BundleError, match=rf"{name}: no manifest\.json: not a bundle") as caught:
        load_bundle(str(tmp_path / name))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", ["", "{}", '{"format_version": 2}'])
def test_manifest_of_another_version(copied: Path, content: str) -> None:
    (copied / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json: not a bundle that caption_ray \S+ reads"):
        load_bundle(str(copied))


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "a/b", "..", ".ssh"])
def test_manifest_that_names_files_elsewhere_is_refused(copied: Path, name: str) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a bundle that caption_ray"):
        load_bundle(str(copied))


def test_a_name_that_leads_elsewhere_is_no_place_to_keep_a_bundle_in(tiny_bundle: Path) -> None:
    manifest = read_manifest(str(tiny_bundle))
    assert kept_location("/models", manifest) == f"/models/{manifest.name}-{manifest.digest[:12]}"
    for name in ("../../home", "a/b", ".hidden"):
        with pytest.raises(BundleError, match="names no place in /models"):
            kept_location("/models", manifest.model_copy(update={"name": name}))


def test_whole_bundle_of_another_digest_is_not_the_one_that_is_asked_for(tiny_bundle: Path) -> None:
    assert is_whole(str(tiny_bundle), read_manifest(str(tiny_bundle)).digest)
    assert not is_whole(str(tiny_bundle), "0" * 64)


def test_other_preprocessing_is_refused(copied: Path) -> None:
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config.replace(PREPROCESSING, "centre crop; v0"))
    seal(copied, "config.json")
    with pytest.raises(BundleError, match="trained on pictures prepared by 'centre crop; v0'"):
        load_bundle(str(copied))


def test_weights_of_another_model_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["model"]["hidden_size"] = 7
    (copied / "config.json").write_text(json.dumps(config))
    seal(copied, "config.json")
    with pytest.raises(BundleError, match=r"the weights do not fit config\.json"):
        load_bundle(str(copied))


def test_vocabulary_of_another_model_is_refused(copied: Path) -> None:
    words = json.loads((copied / "vocabulary.json").read_text())
    words["words"].pop()
    (copied / "vocabulary.json").write_text(json.dumps(words))
    seal(copied, "vocabulary.json")
    with pytest.raises(BundleError, match=r"config\.json speaks of \d+ words and 1280 features; .* have \d+ words"):
        load_bundle(str(copied))


@pytest.mark.parametrize("file", ["model.safetensors", "metrics.json", "config.json"])
def test_sealed_rubbish_is_refused(copied: Path, file: str) -> None:
    (copied / file).write_bytes(b"\xff rubbish")
    seal(copied, file)
    with pytest.raises(BundleError, match=str(copied)):
        load_bundle(str(copied))


def test_scores_that_are_no_object_are_refused(copied: Path) -> None:
    (copied / "metrics.json").write_text("[]")
    seal(copied, "metrics.json")
    with pytest.raises(BundleError, match=r"metrics\.json holds no object"):
        load_bundle(str(copied))


def test_backbone_of_another_version_is_refused_by_the_bundles_name(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["encoder"]["backbone"] = "efficientnet_b0"
    (copied / "config.json").write_text(json.dumps(config))
    seal(copied, "config.json")
    with pytest.raises(BundleError, match=f"^{copied}: .*efficientnet_b0"):
        load_bundle(str(copied))


def test_card_tells_scores_on_dev_alone(tiny_bundle: Path) -> None:
    metrics: dict[str, object] = {"bleu_4": 0.25, "dev_loss": 3.5, "train_loss": 2.5, "words_per_s": 9000.0}
    card = model_card("small", load_bundle(str(tiny_bundle)).config, metrics)
    assert "| bleu_4 | 0.2500 |\n| dev_loss | 3.5000 |\n\n" in card
    assert "train_loss" not in card
    assert "words_per_s" not in card


def test_damaged_vocabulary_is_refused(copied: Path) -> None:
    (copied / "vocabulary.json").write_text('{"format_version": 1, "words": ["a", "dog"]}')
    seal(copied, "vocabulary.json")
    with pytest.raises(BundleError, match=r"vocabulary\.json: not a vocabulary"):
        load_bundle(str(copied))


def test_saving_replaces_an_older_bundle(copied: Path, tiny_bundle: Path) -> None:
    (copied / "left_over.txt").write_text("x")
    bundle = load_bundle(str(tiny_bundle))
    save_bundle(
        str(copied),
        name="tiny",
        data_digest="ab" * 32,
        config=bundle.config,
        vocabulary=bundle.vocabulary,
        model=bundle.model,
        metrics=bundle.metrics,
    )
    assert not (copied / "left_over.txt").exists()
    assert read_manifest(str(copied)).digest == bundle.manifest.digest
