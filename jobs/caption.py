"""Caption pictures."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from caption_ray import storage
from caption_ray.attention_figure import draw_attention
from caption_ray.config import BeamWidth, CaptionLength, DecodeOptions, LengthPenalty, Settings
from caption_ray.data.images import load_picture
from caption_ray.entry import run_job
from caption_ray.errors import PictureError, UsageError

if TYPE_CHECKING:
    from caption_ray.inference import Captioner

logger = logging.getLogger("caption_ray.jobs.caption")

_NAME_BYTES = 255
"""Of a file's name, at most, on the file systems of Linux and macOS."""


class Arguments(Settings):
    """Caption pictures: the best caption of each, its log-probability, and the runners-up of the beam."""

    pictures: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(
        description="Picture files, at least one, of any kind that Pillow reads."
    )
    bundle: str = Field(description="Bundle to caption with: a folder, or a URI such as gs://bucket/bundle.")
    beam_width: BeamWidth | None = Field(None, description="Hypotheses kept per picture; by default the bundle's.")
    length_penalty: LengthPenalty | None = Field(
        None, description="Exponent of the length that log-probabilities are divided by; by default the bundle's."
    )
    max_words: CaptionLength | None = Field(None, description="Longest caption; by default the bundle's.")
    attention: str | None = Field(
        None,
        description="PNG to draw: where the model looked for every word. With several pictures their names, "
        "numbered where they are alike, go before the suffix.",
    )


def main(arguments: Arguments) -> dict[str, object]:
    """Caption what can be read; what cannot is an error in the end, a line each."""
    if not arguments.pictures:
        raise UsageError(
            "no picture is named: give the files to caption, as in jobs/caption.py --bundle BUNDLE photo.jpg"
        )
    figures = figure_paths(arguments.attention, arguments.pictures)
    # Loaded here, so that --help and a wrong command line are answered at once.
    from caption_ray.inference import Captioner

    captioner = Captioner.load(arguments.bundle)
    options = captioner.bundle.config.decode.changed(
        beam_width=arguments.beam_width, length_penalty=arguments.length_penalty, max_words=arguments.max_words
    )
    found: list[dict[str, object]] = []
    errors = []
    for name, figure in zip(arguments.pictures, figures, strict=True):
        try:
            found.append(_caption(captioner, name, options, figure))
        except PictureError as error:  # noqa: PERF203 - one bad picture must not cost the others
            errors.append(str(error))
            found.append({"picture": name, **(error.result or {}), "error": str(error)})
    if errors:
        raise PictureError("\n".join(errors), result={"captions": found})
    return {"captions": found}


def _caption(captioner: "Captioner", name: str, options: DecodeOptions, figure: str | None) -> dict[str, object]:
    picture = load_picture(name)
    captions = captioner.caption_picture(picture, options)
    best = captions[0]
    logger.info("%s: %s (log-probability %.2f)", name, best.text, best.log_probability)
    result: dict[str, object] = {
        "picture": name,
        "caption": best.text,
        "log_probability": best.log_probability,
        "runners_up": [{"caption": other.text, "log_probability": other.log_probability} for other in captions[1:]],
    }
    if figure is None:
        return result
    try:
        draw_attention(picture, best.words, best.attention).save(figure, "PNG")
    except OSError as error:
        told = f"{name}: its figure cannot be written to {figure} ({error.strerror or error})"
        raise PictureError(told, result=result) from error
    logger.info("%s: attention drawn to %s", name, figure)
    return result | {"attention": figure}


def figure_paths(attention: str | None, pictures: Sequence[str]) -> list[str | None]:
    """Return where each picture's figure goes, no two to one file, and make the folder for them.

    Raises UsageError where no file can be written there, or one of the pictures would be replaced.
    """
    if attention is None:
        return [None] * len(pictures)
    storage.output_at("--attention", attention)
    path = storage.local_path("--attention", attention)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--attention {attention}: its folder cannot be made ({error.strerror})") from error
    if path.is_dir():
        raise UsageError(f"--attention {attention}: a folder; name a file, such as {path / 'attention.png'}")
    if path.suffix.lower() != ".png":
        raise UsageError(f"--attention {attention}: takes the PNG to draw, such as {path.with_suffix('.png').name}")
    storage.check_writable(str(path.parent))
    figures = (
        [str(path) if attention.startswith("~") else attention] if len(pictures) == 1 else _numbered(path, pictures)
    )
    for figure in figures:
        if any(_is_same_file(figure, name) for name in pictures):
            raise UsageError(f"--attention {attention}: would replace the picture {figure}; name another file")
    return list(figures)


def _is_same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:  # one of them is not there, or cannot be, such as a name that is too long
        return False


def _numbered(path: Path, pictures: Sequence[str]) -> list[str]:
    stems: list[str] = []
    room = max(1, _NAME_BYTES - len(f"{path.stem}-{path.suffix}".encode()) - len("-9999"))
    for picture in pictures:
        stem, number = Path(picture).stem, 1
        if len(encoded := os.fsencode(stem)) > room:
            stem = encoded[:room].decode(errors="ignore")
        while (numbered := stem if number == 1 else f"{stem}-{number}") in stems:
            number += 1
        stems.append(numbered)
    return [str(path.with_name(f"{path.stem}-{stem}{path.suffix}")) for stem in stems]


if __name__ == "__main__":
    run_job(main, Arguments)
