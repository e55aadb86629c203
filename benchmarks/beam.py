"""Beam search over many pictures at once against one picture after the other.

`python benchmarks/beam.py --bundle B --data D`. One after the other as tutorials do it (`textbook.py`), and by the same
function as all together. All search the same features of dev pictures, and must find the same captions.
"""

import argparse
import statistics

import torch
from compare import ratio, report, seconds_in_turn
from encoder_pass import dev_batches
from textbook import textbook_beam_search

from caption_ray.bundle import load_bundle
from caption_ray.device import pick_device
from caption_ray.model.recorded_search import RecordedSearch


@torch.inference_mode()
def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--data", required=True, help="prepared data set, of which dev pictures are captioned")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--batch", type=int, default=100, help="pictures searched at a time")
    parser.add_argument("--beam-width", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="times that both are measured in turn")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = pick_device()
    bundle = load_bundle(arguments.bundle)
    model = bundle.model.to(device)
    _, _, pictures = next(dev_batches(arguments.data, bundle.config.encoder.image_size, arguments.pictures))
    features = torch.cat([model.features(part.to(device)) for part in pictures.split(16)])
    search = RecordedSearch(model.decoder, bundle.config.vocabulary_size, device)
    options = bundle.config.decode.changed(beam_width=arguments.beam_width)

    def textbook() -> list[tuple[int, ...]]:
        return [textbook_beam_search(model.decoder, picture, options)[0] for picture in features.split(1)]

    def one_by_one() -> list[tuple[int, ...]]:
        return [search(picture, options)[0][0].ids for picture in features.split(1)]

    def together() -> list[tuple[int, ...]]:
        parts = features.split(arguments.batch)
        return [best[0].ids for part in parts for best in search(part, options)]

    ways = {"textbook": textbook, "one_by_one": one_by_one, "together": together}
    found = {name: run() for name, run in ways.items()}
    taken = seconds_in_turn(ways, arguments.rounds)
    report(
        {
            "pictures": len(features),
            "beam_width": options.beam_width,
            "equal_captions": sum(len({*captions}) == 1 for captions in zip(*found.values(), strict=True)),
            "pictures_per_s": {name: len(features) / statistics.median(times) for name, times in taken.items()},
            "times_faster": ratio(taken, "textbook", "together"),
            "times_faster_than_one_by_one": ratio(taken, "one_by_one", "together"),
        }
    )


if __name__ == "__main__":
    main()
