"""Region features of every picture, computed once by a frozen encoder and kept as Parquet in half precision.

A cache is a folder: shards by split, `encoder.safetensors` with the weights that made it, and `features.json`,
written last.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from PIL import Image
from torch import Tensor

from caption_ray import storage
from caption_ray.cluster import actor_resources, connect, node_resources
from caption_ray.config import EncoderConfig, EncoderPrecision
from caption_ray.data import images
from caption_ray.data.batches import stack_pictures
from caption_ray.data.feature_manifest import (
    ENCODER_NAME,
    MANIFEST_NAME,
    FeatureManifest,
    cache_key,
    load_feature_manifest,
)
from caption_ray.data.output_folder import output_folder
from caption_ray.data.shards import ShardWriter, load_manifest
from caption_ray.data.tables import deal_out, read_shards
from caption_ray.device import pick_device, resolve_precision
from caption_ray.errors import FeatureCacheError, UsageError
from caption_ray.progress import Progress
from caption_ray.weights import to_safetensors

logger = logging.getLogger(__name__)

_OUR_FILES = re.compile(r"(train|dev|test)-\d{5,}\.parquet|encoder\.safetensors|features\.json")

_Square = npt.NDArray[np.uint8]


class CacheableEncoder(Protocol):
    """What a cache needs of an encoder (`model.frozen_encoder.FrozenEncoder` has it); it is sent to the actors."""

    image_size: int
    grid_side: int
    num_features: int

    def on(self, device: torch.device, precision: EncoderPrecision) -> Callable[[Tensor], Tensor]:
        """Return what computes, on `device`, (B, R, F) features in single precision of (B, 3, S, S) uint8 pictures."""


def cache_features(
    data: str,
    output: str,
    config: EncoderConfig,
    encoder: CacheableEncoder,
    *,
    weights: Mapping[str, Tensor],
    weights_sha256: str,
    num_views: int = 1,
    view_seed: int = 0,
    batch_size: int = 16,
    precision: EncoderPrecision = "fp32",
    overwrite: bool = False,
) -> FeatureManifest:
    """Run a frozen encoder over every picture of a prepared data set and write the cache to `output`.

    The encoder runs in an actor pool of Ray Data: one actor a GPU, or a CPU where there is none. A complete cache
    with the same key is left as it is, which is no error. Views beyond the first are random crops, mirrored half the
    time where the captions stay true. `weights` are those of the encoder that `config` names, kept for the bundle.

    Raises UsageError where `output` holds something else, and for fp16 where there is no GPU.
    """
    if config.finetune_stages:
        raise UsageError("encoder.finetune_stages: only a frozen encoder's features can be cached; set it to 0")
    data, output = storage.absolute(data), storage.output_at("--output", output)
    manifest = load_manifest(data)
    described = {
        "encoder": config,
        "weights_sha256": weights_sha256,
        "preprocessing": images.PREPROCESSING,
        "data_digest": manifest.digest,
        "num_views": num_views,
        "view_seed": view_seed,
        "precision": precision,
    }
    key = cache_key(**described)  # type: ignore[arg-type]
    if not overwrite and storage.exists(storage.join(output, MANIFEST_NAME)):
        present = _load_same(output, key, manifest)
        logger.info("%s is complete for this encoder and data set; nothing to do", output)
        return present
    progress = Progress(logger, "encoded", manifest.num_pictures)
    with (
        output_folder(output, marker=MANIFEST_NAME, our_files=_OUR_FILES, overwrite=overwrite) as folder,
        connect(),
    ):
        if precision != "mixed" and not ray.cluster_resources().get("GPU"):
            # Here, since Ray would wrap an actor's error.
            resolve_precision(precision, torch.device("cpu"), "--precision")
        storage.write_bytes(storage.join(folder, ENCODER_NAME), to_safetensors(weights))
        shape = (encoder.grid_side**2, encoder.num_features)
        writers = {
            split: ShardWriter(folder, split, _schema(shape, num_views if split == "train" else 1))
            for split in manifest.splits
        }
        paths = [storage.join(data, file.name) for part in manifest.splits.values() for file in part.files]
        with contextlib.ExitStack() as stack:
            for writer in writers.values():
                stack.enter_context(writer)
            make_actor = (ray.put(encoder), num_views, view_seed, precision)
            for table in _encode(paths, manifest.num_pictures, make_actor, batch_size):
                for split, writer in writers.items():
                    part = table.filter(pc.equal(table["split"], split))
                    writer.append(_checked(part, num_views if split == "train" else 1, config))
                progress.add(table.num_rows)
        splits = {split: tuple(writer.files) for split, writer in writers.items()}
        described |= {"key": key, "shape": shape, "splits": splits}
        result = FeatureManifest.model_validate(described)
        storage.write_text(storage.join(folder, MANIFEST_NAME), result.model_dump_json(indent=1) + "\n")
    return result


def _load_same(output: str, key: str, manifest: object) -> FeatureManifest:
    try:
        present = load_feature_manifest(output, manifest)  # type: ignore[arg-type]
    except FeatureCacheError as error:
        raise UsageError(f"{error}, or to another --output") from error
    if present.key != key:
        raise UsageError(
            f"{output}: holds features of {present.encoder.backbone} with other weights, size, views or precision; "
            "choose another --output, or replace it with --overwrite"
        )
    return present


def _schema(shape: tuple[int, int], num_views: int) -> pa.Schema:
    grid = pa.binary(2 * shape[0] * shape[1])  # fixed size: read back without parsing a number
    grids = [(column, grid) for column in _grid_columns(num_views)]
    return pa.schema([("name", pa.string()), ("captions", pa.list_(pa.string())), *grids])


def _grid_columns(num_views: int) -> list[str]:
    return ["picture", *(f"view_{view}" for view in range(1, num_views))]


def _checked(table: pa.Table, num_views: int, config: EncoderConfig) -> pa.Table:
    """Return the table. Raises FeatureCacheError for a picture without features in one of its views."""
    for column in _grid_columns(num_views):
        if table[column].null_count:
            name = table["name"].filter(table[column].is_null())[0]
            raise FeatureCacheError(
                f"{name}: {config.backbone}'s features are beyond 65,504, the most that half precision holds, or no "
                "numbers, as with random weights of a deep network, spoilt ones, or --precision fp16: name trained "
                "weights by --encoder.weights, or use --precision fp32"
            )
    return table


def _encode(
    paths: Sequence[str],
    num_pictures: int,
    make_actor: tuple[ray.ObjectRef, int, int, EncoderPrecision],
    batch_size: int,
) -> Iterator[pa.Table]:
    """Yield the pictures' names, captions, splits and grids, in the order of the shards at `paths`."""
    num_actors, per_actor = actor_resources(node_resources())
    dataset = read_shards(paths, ["name", "captions", "split", "image"])
    dataset = deal_out(dataset, num_pictures, num_actors)
    encoded = dataset.map_batches(
        _EncodePictures,
        fn_constructor_args=make_actor,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        **per_actor,
    )
    yield from encoded.iter_batches(batch_size=None, batch_format="pyarrow")


class _EncodePictures:
    """One actor of the pool: a copy of the encoder, picture bytes to grids."""

    def __init__(self, encoder_ref: ray.ObjectRef, num_views: int, view_seed: int, precision: EncoderPrecision) -> None:
        self.device = pick_device()
        encoder: CacheableEncoder = ray.get(encoder_ref)
        self.image_size = encoder.image_size
        self.grid_bytes = 2 * encoder.grid_side**2 * encoder.num_features
        self.features_of = encoder.on(self.device, precision)
        self.num_views = num_views
        self.view_seed = view_seed

    def __call__(self, table: pa.Table) -> pa.Table:
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # an actor a CPU; said here, since it holds for the calling thread alone
        columns = {name: table[name] for name in ("name", "captions", "split")}
        views = [self._views(**row) for row in table.to_pylist()]
        for column, squares in zip(_grid_columns(self.num_views), zip(*views, strict=True), strict=True):
            columns[column] = self._encode(squares)
        return pa.table(columns)

    def _views(self, name: str, captions: list[str], split: str, image: bytes) -> list[_Square | None]:
        """Return the picture's views; one that is opened may be large, and is let go before the next."""
        picture = images.open_picture(image)
        others = range(1, self.num_views)
        augmented = (self._augment(picture, view, name, captions) if split == "train" else None for view in others)
        return [images.to_square(picture, self.image_size), *augmented]

    def _augment(self, picture: Image.Image, view: int, name: str, captions: list[str]) -> _Square:
        side = self.image_size
        generator = images.seeded_generator(self.view_seed, name, view)
        large = images.to_square(picture, images.padded_side(side))
        return images.augment(large, side, images.may_mirror(captions), generator)

    def _encode(self, squares: Sequence[_Square | None]) -> pa.Array:
        """Return the grids' bytes, null for None, and for what half precision cannot hold."""
        present = [square for square in squares if square is not None]
        kind = pa.binary(self.grid_bytes)
        if not present:
            return pa.nulls(len(squares), kind)
        with np.errstate(over="ignore"):
            halves = self.features_of(stack_pictures(present)).cpu().numpy().astype("<f2")
        are_held = np.isfinite(halves).all(axis=(1, 2))
        grids = iter([half.tobytes() if is_held else None for half, is_held in zip(halves, are_held, strict=True)])
        return pa.array([None if square is None else next(grids) for square in squares], kind)
