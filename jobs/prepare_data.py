"""Turn a folder of captioned pictures into a data set for training."""

import json
from typing import Annotated

from pydantic import Field
from tyro.conf import arg

from caption_ray import storage
from caption_ray.config import CaptionRules, Settings, VocabularyConfig
from caption_ray.entry import run_job


class Arguments(Settings):
    """Turn a folder of captioned pictures into a data set: Parquet shards, vocabulary, captions and a report.

    Reads Flickr8k as Kaggle has it (Images/ and captions.txt), as it was released (Flickr8k.token.txt),
    or with Karpathy's splits (dataset_flickr8k.json). Flickr_8k.{train,dev,test}Images.txt beside them
    are respected.
    """

    source: str = Field(description="Folder with the pictures and the caption file.")
    output: str = Field(description="Folder to make, local or a URI such as gs://bucket/data.")
    skip_bad: bool = Field(
        False,
        description="Leave out captions and pictures that cannot be used, and list them in report.json.",
    )
    overwrite: bool = Field(False, description="Replace a data set that is there already.")
    rules: Annotated[CaptionRules, arg(name="")] = CaptionRules()
    vocabulary: Annotated[VocabularyConfig, arg(name="")] = VocabularyConfig()


def main(arguments: Arguments) -> dict[str, object]:
    """Prepare the data set and sum it up."""
    # Loaded here, so that --help and a wrong command line are answered at once.
    from caption_ray.data.prepare import REPORT_NAME, prepare_dataset

    manifest = prepare_dataset(
        arguments.source,
        arguments.output,
        skip_bad=arguments.skip_bad,
        overwrite=arguments.overwrite,
        rules=arguments.rules,
        vocabulary=arguments.vocabulary,
    )
    output = storage.absolute(arguments.output)
    report = storage.join(output, REPORT_NAME)
    return {
        "output": output,
        "pictures": {name: split.num_pictures for name, split in manifest.splits.items()},
        "captions": {name: split.num_captions for name, split in manifest.splits.items()},
        "vocabulary_size": manifest.vocabulary_size,
        "left_out": manifest.num_left_out,
        "unlisted": len(json.loads(storage.read_text(report))["unlisted_pictures"]),
        "report": report,
    }


if __name__ == "__main__":
    run_job(main, Arguments)
