"""Score a bundle on captioned pictures."""

from typing import Literal

from pydantic import Field

from caption_ray.config import BeamWidth, CaptionLength, LengthPenalty, Settings
from caption_ray.entry import run_job
from caption_ray.errors import UsageError


class Arguments(Settings):
    """Score a bundle on captioned pictures: BLEU-1..4, CIDEr, ROUGE-L, predictions, and a page to look at.

    The pictures are a split of a prepared data set (--data), or of a folder as it is (--source).
    """

    bundle: str = Field(description="Bundle to score: a folder, or a URI such as gs://bucket/bundle.")
    data: str | None = Field(None, description="Prepared data set (see jobs/prepare_data.py).")
    source: str | None = Field(
        None, description="Folder with pictures, captions and perhaps split lists, never prepared."
    )
    split: Literal["train", "dev", "test", "all"] = Field("dev", description="Pictures to score.")
    output: str = Field("evaluation", description="Folder for metrics.json, predictions_SPLIT.json and report.html.")
    beam_width: BeamWidth | None = Field(None, description="Hypotheses kept per picture; by default the bundle's.")
    length_penalty: LengthPenalty | None = Field(None, description="Length penalty; by default the bundle's.")
    max_words: CaptionLength | None = Field(None, description="Longest caption, in words; by default the bundle's.")
    skip_bad: bool = Field(False, description="Score without the pictures that cannot be read.")
    overwrite: bool = Field(False, description="Replace the results of another bundle, split or search in the folder.")


def main(arguments: Arguments) -> dict[str, object]:
    """Evaluate and return the scores."""
    if (arguments.data is None) == (arguments.source is None):
        raise UsageError("give the pictures either as --data DATA or as --source FOLDER")
    # Loaded here, so that --help and a wrong command line are answered at once.
    from caption_ray.bundle import load_bundle
    from caption_ray.evaluation.evaluate import evaluate
    from caption_ray.evaluation.pictures import prepared_pictures, source_pictures

    if arguments.data is not None:
        pictures = prepared_pictures(arguments.data, arguments.split)
    else:
        pictures = source_pictures(arguments.source or "", arguments.split)
    bundle = load_bundle(arguments.bundle)
    options = bundle.config.decode.changed(
        beam_width=arguments.beam_width, length_penalty=arguments.length_penalty, max_words=arguments.max_words
    )
    result = evaluate(
        bundle,
        pictures,
        arguments.output,
        options=options,
        skip_bad=arguments.skip_bad,
        overwrite=arguments.overwrite,
    )
    return {**result.scores.model_dump(), "output": result.output, "report": result.report}


if __name__ == "__main__":
    run_job(main, Arguments)
