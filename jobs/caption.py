"""Caption pictures."""

import logging
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from caption_ray.attention_figure import draw_attention
from caption_ray.config import DecodeOptions, Settings
from caption_ray.data.images import load_picture, to_square
from caption_ray.entry import run_job
from caption_ray.errors import PictureError
from caption_ray.inference import Captioner

logger = logging.getLogger("caption_ray.jobs.caption")


class Arguments(Settings):
    """Caption pictures: the best caption of each, its log-probability, and the runners-up of the beam."""

    pictures: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(
        min_length=1, description="Picture files, of any kind that Pillow reads."
    )
    bundle: str = Field(description="Bundle to caption with: a folder, or a URI such as gs://bucket/bundle.")
    beam_width: int | None = Field(
        None, ge=1, le=20, description="Hypotheses kept per picture; by default the bundle's."
    )
    attention: str | None = Field(
        None,
        description="PNG to draw: where the model looked for every word. With several pictures their names go "
        "before the suffix.",
    )


def main(arguments: Arguments) -> dict[str, object]:
    """Caption what can be read; what cannot is an error in the end, a line each."""
    captioner = Captioner.load(arguments.bundle)
    asked = arguments.model_dump(include={"beam_width"}, exclude_none=True)
    options = DecodeOptions.model_validate({**captioner.bundle.config.decode.model_dump(), **asked})
    found: list[dict[str, object]] = []
    errors = []
    for name in arguments.pictures:
        try:
            found.append(_caption(captioner, name, options, _figure_path(arguments, name)))
        except PictureError as error:  # noqa: PERF203 - one bad picture must not cost the others
            errors.append(str(error))
            found.append({"picture": name, "error": str(error)})
    if errors:
        raise PictureError("\n".join(errors), result={"captions": found})
    return {"captions": found}


def _caption(captioner: Captioner, name: str, options: DecodeOptions, figure: str | None) -> dict[str, object]:
    picture = load_picture(name)
    side = captioner.bundle.config.encoder.image_size
    captions = captioner.caption([to_square(picture, side)], options)[0]
    best = captions[0]
    logger.info("%s: %s (log-probability %.2f)", name, best.text, best.log_probability)
    if figure is not None:
        draw_attention(picture, best.words, best.attention).save(figure, "PNG")
        logger.info("%s: attention drawn to %s", name, figure)
    return {
        "picture": name,
        "caption": best.text,
        "log_probability": best.log_probability,
        "runners_up": [{"caption": other.text, "log_probability": other.log_probability} for other in captions[1:]],
        **({} if figure is None else {"attention": figure}),
    }


def _figure_path(arguments: Arguments, name: str) -> str | None:
    if arguments.attention is None or len(arguments.pictures) == 1:
        return arguments.attention
    path = Path(arguments.attention)
    return str(path.with_name(f"{path.stem}-{Path(name).stem}{path.suffix}"))


if __name__ == "__main__":
    run_job(main, Arguments)
