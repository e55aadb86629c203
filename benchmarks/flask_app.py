"""A captioning service as tutorials write it: `python benchmarks/flask_app.py --bundle B --port P`.

Flask with its own server, a thread a request, one picture at a time, the network as torchvision makes it in single
precision. Preprocessing and search are this project's, so that it does the same work.
"""

import argparse

import torch
from encoder_pass import eager
from flask import Flask, request

from caption_ray.bundle import load_bundle
from caption_ray.data.images import decode_square
from caption_ray.device import pick_device
from caption_ray.model.decoding import beam_search


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    assert bundle.model.encoder is not None
    device = pick_device()
    encode = eager(bundle.model.encoder, device)
    decoder = bundle.model.decoder.to(device)
    side = bundle.config.encoder.image_size
    app = Flask(__name__)

    @app.post("/caption")
    def caption() -> dict[str, str]:
        picture = torch.from_numpy(decode_square(request.get_data(), side)).unsqueeze(0)
        with torch.inference_mode():
            (found,) = beam_search(decoder, encode(picture), bundle.config.decode)
        return {"caption": " ".join(bundle.vocabulary.decode(found[0].ids))}

    app.run(host="127.0.0.1", port=arguments.port, threaded=True)


if __name__ == "__main__":
    main()
