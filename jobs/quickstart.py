"""From nothing to a captioning model in a few minutes, on drawn pictures."""

import json
import logging
import shutil
from contextlib import ExitStack
from pathlib import Path

from pydantic import Field

from caption_ray import presets, storage
from caption_ray.config import CaptionRules, Settings, VocabularyConfig
from caption_ray.entry import run_job
from caption_ray.errors import QualityError, RunError, UsageError, WorkLeftError

logger = logging.getLogger("caption_ray.jobs.quickstart")

MIN_BLEU_4 = 0.80
MARKER = "made-by-quickstart"
PARTS = ("data", "features", "bundle", "evaluation", "run", "attention.png")


class Arguments(Settings):
    """Draw a small picture set and take it all the way: prepare, cache features, train, evaluate, caption.

    A few minutes on two CPU cores. Fails if the model does not describe pictures that it has never seen.
    """

    output: str = Field(
        "runs/quickstart", description="Folder for all of it; an earlier quick start there is replaced."
    )
    num_pictures: int = Field(800, ge=100, description="Pictures to draw; a tenth each is kept for dev and test.")
    num_workers: int = Field(2, ge=1, description="Data-parallel training workers.")
    seed: int = Field(0, ge=0, description="Seed of the pictures.")
    source: str | None = Field(None, description="Pictures drawn earlier, to use instead of drawing new ones.")


def main(arguments: Arguments) -> dict[str, object]:
    """Run every step; each is what the job of that name does."""
    storage.output_at("--output", arguments.output)
    folder = storage.local_path("--output", arguments.output).absolute()
    drawn = arguments.source is None
    source = folder / "source" if arguments.source is None else storage.local_path("--source", arguments.source)
    if not drawn and source.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"--source {source}: lies in --output {folder}, which is replaced; choose another --output")
    # Loaded here, so that --help and a wrong command line are answered at once.
    from caption_ray.attention_figure import draw_attention
    from caption_ray.bundle import load_bundle
    from caption_ray.cluster import connect
    from caption_ray.data.captions import read_source
    from caption_ray.data.feature_cache import cache_features
    from caption_ray.data.images import load_picture
    from caption_ray.data.output_folder import clear_parts
    from caption_ray.data.prepare import prepare_dataset
    from caption_ray.data.synthetic import write_synthetic_flickr8k
    from caption_ray.evaluation.evaluate import evaluate
    from caption_ray.evaluation.pictures import prepared_pictures
    from caption_ray.inference import Captioner
    from caption_ray.lock import LOCK_NAME, sole_driver
    from caption_ray.model.encoder import build_encoder, weights_digest
    from caption_ray.model.frozen_encoder import FrozenEncoder
    from caption_ray.train.steps import groups_per_worker
    from caption_ray.train.trainer import TrainRequest, train

    data, features, bundle_folder = (str(folder / part) for part in ("data", "features", "bundle"))
    experiment = presets.quickstart()
    num_groups = groups_per_worker(experiment.training, 1)
    if num_groups % arguments.num_workers:
        fitting = [str(number) for number in range(1, num_groups + 1) if num_groups % number == 0]
        raise UsageError(
            f"--num-workers {arguments.num_workers}: cannot share {num_groups} pictures a step evenly; choose one of "
            + ", ".join(fitting)
        )
    storage.check_writable(str(folder.parent))
    with ExitStack() as held:
        held.enter_context(sole_driver(str(folder.parent), "quick start", name=f"{folder.name}.{LOCK_NAME}"))
        clear_parts(folder, ("source", *PARTS) if drawn else PARTS, marker=MARKER)
        if drawn:
            logger.info("1/6 drawing %d pictures", arguments.num_pictures)
            write_synthetic_flickr8k(source, arguments.num_pictures, arguments.seed)
        held.enter_context(connect())
        logger.info("2/6 preparing the data set")
        prepare_dataset(
            str(source),
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
            FrozenEncoder(encoder),
            weights=encoder.state_dict(),
            weights_sha256=weights_digest(encoder),
        )
        logger.info("4/6 training with %d workers", arguments.num_workers)
        request = TrainRequest(
            experiment=experiment,
            preset=experiment,
            data=data,
            features=features,
            storage=str(folder),
            name="run",
            num_workers=arguments.num_workers,
            device="cpu",
        )
        try:
            outcome = train(request)
        except WorkLeftError as error:
            raise RunError("stopped as asked; the same command begins the quick start anew") from error
        shutil.copytree(outcome.bundle, bundle_folder)
        bundle = load_bundle(bundle_folder)
        logger.info("5/6 evaluating on pictures that training has not seen")
        evaluation = evaluate(bundle, prepared_pictures(data, "test"), str(folder / "evaluation"))
    logger.info("6/6 captioning one of them")
    name = min(json.loads(Path(data, "captions_test.json").read_text()))
    path = next(record.path for record in read_source(str(source), CaptionRules()).records if record.name == name)
    picture = load_picture(path)
    best = Captioner(bundle).caption_picture(picture)[0]
    figure = str(folder / "attention.png")
    draw_attention(picture, best.words, best.attention).save(figure)
    scores = evaluation.scores.model_dump()
    result: dict[str, object] = {
        **scores,
        "caption": best.text,
        "picture": path,
        "attention": figure,
        "bundle": bundle_folder,
        "report": evaluation.report,
    }
    logger.info("%s", "  ".join(f"BLEU-{n} {scores[f'bleu_{n}']:.3f}" for n in (1, 2, 3, 4)))
    logger.info("%s: %s", name, best.text)
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
        bundle_folder,
        path,
    )
    return result


if __name__ == "__main__":
    run_job(main, Arguments)
