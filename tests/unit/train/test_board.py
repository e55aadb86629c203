import io
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from caption_ray.caption import Caption
from caption_ray.train.board import Board


def test_curves_and_pictures_with_their_captions_are_there_to_be_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(stream, "PNG")
    caption = Caption(words=("a", "dog"), log_probability=-1.0, attention=np.full((2, 2, 2), 0.25))
    board = Board(str(tmp_path), {"a.jpg": stream.getvalue(), "b.jpg": stream.getvalue()}, first_step=1)
    board.add_epoch(1, {"loss/train": 2.5}, {"a.jpg": caption})
    board.add_epoch(2, {"loss/train": 1.5}, {"a.jpg": caption})
    board.close()

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss/train")] == [(1, 2.5), (2, 1.5)]
    assert events.Tags()["images"] == ["dev/0_a.jpg"]
    first, second = events.Images("dev/0_a.jpg")
    assert (first.step, second.step) == (1, 2)
    picture = Image.open(io.BytesIO(second.encoded_image_string))
    assert (picture.format, picture.size) == ("JPEG", (second.width, second.height))
    (text,) = events.Tensors("dev/0_a.jpg/text_summary")[:1]
    assert text.tensor_proto.string_val[0] == b"a dog"
