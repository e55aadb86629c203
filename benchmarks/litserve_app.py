"""The batched model under LitServe: `python benchmarks/litserve_app.py --bundle B --port P`.

The same `Captioner` as this project's service has, in batches of up to 16, by LitServe's own batching. Pictures come as
base64 in JSON, as in its examples.
"""

import argparse
import base64

import litserve
import numpy as np
import numpy.typing as npt

from caption_ray.device import pick_device
from caption_ray.inference import Captioner

Square = npt.NDArray[np.uint8]


class Api(litserve.LitAPI):
    """What LitServe asks of a model."""

    def __init__(self, bundle: str) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.01)
        self.bundle = bundle

    def setup(self, device: object) -> None:  # noqa: ARG002, the interface's
        """Load the model in the process that computes."""
        self.captioner = Captioner.load(self.bundle, precision="auto")

    def decode_request(self, request: dict[str, str]) -> Square:
        """Return the picture."""
        return self.captioner.decode_picture(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Square]) -> list[Square]:
        """Return the pictures as the captioner takes them."""
        return inputs

    def predict(self, pictures: list[Square]) -> list[str]:
        """Return each picture's best caption."""
        return [captions[0].text for captions in self.captioner.caption(pictures)]

    def unbatch(self, output: list[str]) -> list[str]:
        """Return the captions one by one."""
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        """Return the answer."""
        return {"caption": output}


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    server = litserve.LitServer(Api(arguments.bundle), accelerator=pick_device().type, devices=1)
    server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
