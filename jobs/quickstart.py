"""From nothing to a captioning model in a few minutes, on drawn pictures."""

import logging
import shutil
from pathlib import Path

from pydantic import Field

from caption_ray import presets
from caption_ray.attention_figure import draw_attention
from caption_ray.bundle import load_bundle
from caption_ray.cluster import connect
from caption_ray.config import CaptionRules, Settings, VocabularyConfig
from caption_ray.data.feature_cache import cache_features
from caption_ray.data.images import load_picture, to_square
from caption_ray.data.prepare import prepare_dataset
from caption_ray.data.synthetic import write_synthetic_flickr8k
from caption_ray.entry import run_job
from caption_ray.errors import QualityError
from caption_ray.evaluation.evaluate import evaluate
from caption_ray.evaluation.pictures import prepared_pictures
from caption_ray.inference import Captioner
from caption_ray.model.encoder import build_encoder, fold_batch_norm, weights_digest
from caption_ray.train.trainer import TrainRequest, train

logger = logging.getLogger("caption_ray.jobs.quickstart")

MIN_BLEU_4 = 0.80


class Arguments(Settings):
    """Draw a small picture set and take it all the way: prepare, cache features, train, evaluate, caption.

    A few minutes on two CPU cores. Fails if the model does not describe pictures that it has never seen.
    """

    output: str = Field("runs/quickstart", description="Folder for everything; what is there is replaced.")
    num_pictures: int = Field(800, ge=100, description="Pictures to draw; a tenth each is kept for dev and test.")
    num_workers: int = Field(2, ge=1, description="Data-parallel training workers.")
    seed: int = Field(0, ge=0, description="Seed of the pictures.")
    source: str | None = Field(None, description="Pictures drawn earlier, to use instead of drawing new ones.")


def main(arguments: Arguments) -> dict[str, object]:
    """Run every step; each is what the job of that name does."""
    folder = Path(arguments.output).absolute()
    for part in ("source", "data", "features", "bundle", "evaluation", "run"):
        shutil.rmtree(folder / part, ignore_errors=True)
    source, data, features = (str(folder / part) for part in ("source", "data", "features"))
    experiment = presets.quickstart()
    logger.info("1/6 drawing %d pictures", arguments.num_pictures)
    if arguments.source is None:
        write_synthetic_flickr8k(source, arguments.num_pictures, arguments.seed)
    with connect():
        logger.info("2/6 preparing the data set")
        prepare_dataset(
            arguments.source or source,
            data,
            skip_bad=False,
            overwrite=False,
            rules=CaptionRules(),
            vocabulary=VocabularyConfig(min_count=1),
        )
        logger.info("3/6 caching features of %s", experiment.encoder.backbone)
        encoder = build_encoder(experiment.encoder)
        cache_features(
            data,
            features,
            experiment.encoder,
            fold_batch_norm(encoder),
            weights=encoder.state_dict(),
            weights_sha256=weights_digest(encoder),
        )
        logger.info("4/6 training with %d workers", arguments.num_workers)
        outcome = train(
            TrainRequest(
                experiment=experiment,
                preset=experiment,
                data=data,
                features=features,
                storage=str(folder),
                name="run",
                num_workers=arguments.num_workers,
                device="cpu",
            )
        )
        shutil.copytree(outcome.bundle, folder / "bundle")
        bundle = load_bundle(str(folder / "bundle"))
        logger.info("5/6 evaluating on pictures that training has not seen")
        evaluation = evaluate(bundle, prepared_pictures(data, "test"), str(folder / "evaluation"))
    logger.info("6/6 captioning one of them")
    picture = sorted(Path(arguments.source or source, "Images").glob("*9.jpg"))[0]
    caption, figure = caption_picture(str(folder / "bundle"), picture, folder / "attention.png")
    scores = evaluation.scores.model_dump()
    result: dict[str, object] = {
        **scores,
        "caption": caption,
        "picture": str(picture),
        "attention": figure,
        "bundle": str(folder / "bundle"),
        "report": evaluation.report,
    }
    logger.info("%s", "  ".join(f"BLEU-{n} {scores[f'bleu_{n}']:.3f}" for n in (1, 2, 3, 4)))
    logger.info("%s: %s", picture.name, caption)
    if evaluation.scores.bleu_4 < MIN_BLEU_4:
        raise QualityError(
            f"BLEU-4 on unseen pictures is {evaluation.scores.bleu_4:.3f}, under {MIN_BLEU_4}: the model has not "
            f"learnt to describe them; look at {evaluation.report}",
            result=result,
        )
    logger.info(
        "Next:\n  look at %s and %s\n  tensorboard --logdir %s\n  python jobs/caption.py --bundle %s %s\n"
        "  python jobs/prepare_data.py --help, for pictures of your own",
        figure,
        evaluation.report,
        folder / "run",
        folder / "bundle",
        picture,
    )
    return result


def caption_picture(bundle: str, picture: Path, figure: Path) -> tuple[str, str]:
    """Caption one picture and draw the attention; return the caption and the drawing's path."""
    captioner = Captioner.load(bundle)
    image = load_picture(str(picture))
    best = captioner.caption([to_square(image, captioner.bundle.config.encoder.image_size)])[0][0]
    draw_attention(image, best.words, best.attention).save(figure, "PNG")
    return best.text, str(figure)


if __name__ == "__main__":
    run_job(main, Arguments)
