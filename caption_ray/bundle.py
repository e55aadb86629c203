"""The one artefact that leaves training: a folder that evaluation, captioning and serving start from, alone.

    model.safetensors  weights of encoder and decoder      vocabulary.json  words and their ids
    config.json        sizes, decoding and preprocessing    metrics.json     scores on the dev split
    manifest.json      format version, SHA-256 of each file README.md        the model card
    lineage.json       of a sweep's best: where it comes from

The manifest is written last; a folder without it is no bundle. Nothing in it is a pickle.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import safetensors.torch
from pydantic import Field, ValidationError

import caption_ray
from caption_ray import storage
from caption_ray.config import PLAIN_NAME, DecodeOptions, EncoderConfig, ModelConfig, Settings
from caption_ray.data.images import PREPROCESSING
from caption_ray.errors import BundleError, CaptionRayError, UsageError
from caption_ray.lineage import Lineage
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder
from caption_ray.model.encoder import build_encoder
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.weights import to_safetensors

MANIFEST_NAME = "manifest.json"
LINEAGE_NAME = "lineage.json"
BUNDLE_VARIABLE = "CAPTION_RAY_BUNDLE"
"""Environment variable that names the bundle of a service that is not told another."""

_FILES = ("model.safetensors", "config.json", "vocabulary.json", "metrics.json", "README.md")


class BundleConfig(Settings):
    """What a bundle's weights are the weights of."""

    encoder: EncoderConfig
    model: ModelConfig
    decode: DecodeOptions = Field(description="How captions are searched for unless a caller says otherwise.")
    num_features: int = Field(ge=1, description="Features of a region, F.")
    vocabulary_size: int = Field(ge=5)
    preprocessing: str = Field(PREPROCESSING, description="data.images.PREPROCESSING when it was trained.")


class BundleManifest(Settings):
    """What a bundle is made of."""

    format_version: Literal[1] = 1
    caption_ray_version: str = caption_ray.__version__
    name: str = Field(description="Name of the run that trained it.")
    data_digest: str = Field(description="Digest of the data set that it was trained on.")
    # Plain names: whoever copies what a stranger's manifest names copies nothing from elsewhere.
    files: dict[Annotated[str, Field(pattern=PLAIN_NAME)], str] = Field(description="SHA-256 of each file, by name.")

    @property
    def digest(self) -> str:
        """One SHA-256 that names the bundle's whole content."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A loaded bundle; the model is in evaluation mode, on the CPU."""

    location: str
    manifest: BundleManifest
    config: BundleConfig
    vocabulary: Vocabulary
    model: CaptionModel
    metrics: dict[str, object]
    lineage: Lineage | None = None


def save_bundle(
    location: str,
    *,
    name: str,
    data_digest: str,
    config: BundleConfig,
    vocabulary: Vocabulary,
    model: CaptionModel,
    metrics: dict[str, object],
    lineage: Lineage | None = None,
) -> BundleManifest:
    """Write a bundle to a local folder or a URI, replacing an older one there."""
    storage.delete_folder(location)
    weights = model.state_dict()
    if config.model.tie_embeddings:
        del weights["decoder.output.weight"]  # the same numbers as the embedding; safetensors keeps one copy
    contents = {
        "model.safetensors": to_safetensors(weights),
        "config.json": config.model_dump_json(indent=1).encode(),
        "vocabulary.json": vocabulary.to_json().encode(),
        "metrics.json": json.dumps(metrics, indent=1).encode(),
        "README.md": model_card(name, config, metrics).encode(),
    }
    if lineage is not None:
        contents[LINEAGE_NAME] = lineage.model_dump_json(indent=1).encode()
    for file, content in contents.items():
        storage.write_bytes(storage.join(location, file), content)
    manifest = BundleManifest(
        name=name,
        data_digest=data_digest,
        files={file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
    )
    storage.write_text(storage.join(location, MANIFEST_NAME), manifest.model_dump_json(indent=1))
    return manifest


def read_manifest(location: str) -> BundleManifest:
    """Return a bundle's manifest. Raises BundleError where there is none, or one of another version."""
    path = storage.join(location, MANIFEST_NAME)
    try:
        return BundleManifest.model_validate_json(storage.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{location}: no {MANIFEST_NAME}: not a bundle; training leaves one in RUNS/NAME/bundle, "
            "the quick start in runs/quickstart/bundle",
            exit_code=UsageError.exit_code,
        ) from error
    except ValidationError as error:
        raise BundleError(f"{path}: not a bundle that caption_ray {caption_ray.__version__} reads ({error})") from error


def kept_location(folder: str, manifest: BundleManifest) -> str:
    """Return where in a folder of many a bundle lies whose place names nothing else: under its name and digest.

    Raises BundleError where its name would lead elsewhere.
    """
    if not re.fullmatch(PLAIN_NAME, manifest.name):
        raise BundleError(
            f"bundle {manifest.name!r}: a name with slashes, or a dot or hyphen first, names no place in {folder}; "
            "train under another --name"
        )
    return storage.join(storage.absolute(folder), f"{manifest.name}-{manifest.digest[:12]}")


def load_bundle(location: str) -> Bundle:
    """Read, verify and load a bundle.

    Raises BundleError where a file is absent or is not what the manifest says, or where it was trained with another
    preprocessing than this version's.
    """
    location = storage.absolute(location)
    manifest = read_manifest(location)
    files = (*_FILES, LINEAGE_NAME) if LINEAGE_NAME in manifest.files else _FILES
    contents = {file: _read_verified(location, file, manifest) for file in files}
    try:
        config = BundleConfig.model_validate_json(contents["config.json"])
        vocabulary = Vocabulary.from_json(
            contents["vocabulary.json"].decode(), storage.join(location, "vocabulary.json")
        )
        lineage = Lineage.model_validate_json(contents[LINEAGE_NAME]) if LINEAGE_NAME in contents else None
        metrics = json.loads(contents["metrics.json"])
        if not isinstance(metrics, dict):
            raise ValueError("metrics.json holds no object")
    except (ValueError, CaptionRayError) as error:  # pydantic's and json's errors are ValueErrors
        raise BundleError(f"{location}: cannot be read by caption_ray {caption_ray.__version__}: {error}") from error
    if config.preprocessing != PREPROCESSING:
        raise BundleError(
            f"{location}: trained on pictures prepared by {config.preprocessing!r}, this version does "
            f"{PREPROCESSING!r}; use the version of caption_ray that wrote it ({manifest.caption_ray_version})"
        )
    try:
        model = build_model(config)
    except UsageError as error:  # a backbone that another version has
        raise BundleError(f"{location}: cannot be built by caption_ray {caption_ray.__version__}: {error}") from error
    assert model.encoder is not None
    described = f"{config.vocabulary_size} words and {config.num_features} features"
    found = f"{len(vocabulary)} words and {model.encoder.num_features} features"
    if found != described:
        raise BundleError(f"{location}: config.json speaks of {described}; vocabulary and encoder have {found}")
    try:
        weights = safetensors.torch.load(contents["model.safetensors"])
        if config.model.tie_embeddings:
            weights["decoder.output.weight"] = weights["decoder.embedding.weight"]
        model.load_state_dict(weights)
    except (RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise BundleError(f"{location}: the weights do not fit config.json: {error}") from error
    return Bundle(
        location=location,
        manifest=manifest,
        config=config,
        vocabulary=vocabulary,
        model=model.eval(),
        metrics=metrics,
        lineage=lineage,
    )


def is_whole(location: str, digest: str) -> bool:
    """Tell whether the bundle of this digest is there, all of it."""
    try:
        return load_bundle(location).manifest.digest == digest
    except BundleError:
        return False


def build_model(config: BundleConfig) -> CaptionModel:
    """Build the network that `config` describes, its weights still random."""
    encoder = build_encoder(config.encoder, load_weights=False)
    return CaptionModel(encoder, Decoder(config.model, config.num_features, config.vocabulary_size))


def _read_verified(location: str, file: str, manifest: BundleManifest) -> bytes:
    path = storage.join(location, file)
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: missing; copy the bundle again, whole") from error
    if hashlib.sha256(content).hexdigest() != manifest.files.get(file):
        raise BundleError(f"{path}: not what {MANIFEST_NAME} says (SHA-256 differs); copy the bundle again")
    return content


_DEV_SCORES = ("dev_loss", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider", "rouge_l", "mean_words")
"""What of an epoch's figures is of the dev split."""


def model_card(name: str, config: BundleConfig, metrics: dict[str, object]) -> str:
    """Return the bundle's README, in Markdown."""
    scores = "\n".join(f"| {key} | {value:.4f} |" for key, value in metrics.items() if key in _DEV_SCORES)
    return f"""# Captioning model {name}

Describes a picture in one English sentence. {config.encoder.backbone} encoder, additive attention, LSTM decoder,
trained with caption_ray {caption_ray.__version__}; {config.vocabulary_size:,} words.

| on the dev split | |
|---|---|
{scores}

Use: `python jobs/caption.py --bundle THIS_FOLDER photo.jpg`

## Limits

It knows what its training captions spoke of, and no more; it counts poorly, names no one, and repeats the biases of
its training pictures. A caption's log-probability is no guarantee of truth. Not for decisions about people.
"""
