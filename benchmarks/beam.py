"""Beam search over many pictures at once against one after the other: `python benchmarks/beam.py --bundle B --data D`.

Both are the same search on the same features of dev pictures; the captions must be equal.
"""

import argparse
import statistics

import torch
from compare import ratio, report, seconds_in_turn
from encoder_pass import dev_batches

from caption_ray.bundle import load_bundle
from caption_ray.device import pick_device
from caption_ray.model.decoding import Hypothesis, beam_search


@torch.inference_mode()
def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--data", required=True, help="prepared data set, of which dev pictures are captioned")
    parser.add_argument("--pictures", type=int, default=100)
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
    options = bundle.config.decode.changed(beam_width=arguments.beam_width)

    def one_by_one() -> list[list[Hypothesis]]:
        return [beam_search(model.decoder, picture, options)[0] for picture in features.split(1)]

    def together() -> list[list[Hypothesis]]:
        return beam_search(model.decoder, features, options)

    pairs = list(zip(one_by_one(), together(), strict=True))
    taken = seconds_in_turn({"one_by_one": one_by_one, "together": together}, arguments.rounds)
    report(
        {
            "pictures": len(features),
            "beam_width": options.beam_width,
            "equal_captions": sum(alone[0].ids == batched[0].ids for alone, batched in pairs),
            "pictures_per_s": {name: len(features) / statistics.median(times) for name, times in taken.items()},
            "times_faster": ratio(taken, "one_by_one", "together"),
        }
    )


if __name__ == "__main__":
    main()
