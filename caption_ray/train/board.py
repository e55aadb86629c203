"""What a run shows in TensorBoard: curves, and a page of dev pictures with captions and attention."""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from caption_ray import storage
from caption_ray.attention_figure import draw_attention
from caption_ray.caption import Caption
from caption_ray.data.images import open_picture

NUM_SHOWN = 4


class Board:
    """Writes to RUN_FOLDER/tensorboard; for a run on a URI, to a local folder that is copied there every epoch."""

    def __init__(self, run_folder: str, pictures: Mapping[str, bytes], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and one worker alone needs it

        self._target = storage.join(run_folder, "tensorboard")
        self._scratch = tempfile.TemporaryDirectory() if storage.is_uri(run_folder) else None
        self._folder = self._scratch.name if self._scratch else self._target
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        self._pictures = pictures
        # Steps that a killed worker wrote after its last checkpoint are hidden.
        self._writer = SummaryWriter(self._folder, purge_step=first_step)

    def add_epoch(self, epoch: int, values: Mapping[str, float], shown: Mapping[str, Caption]) -> None:
        """Write the curves' next points, `epoch` counting from 1, and the page of dev pictures."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        for number, (name, data) in enumerate(self._pictures.items()):
            if name in shown:
                caption = shown[name]
                sheet = draw_attention(open_picture(data), caption.words, caption.attention)
                self._add_picture(f"dev/{number}_{name}", sheet, epoch)
                self._writer.add_text(f"dev/{number}_{name}", caption.text, epoch)
        self._writer.flush()
        if self._scratch:
            storage.copy_folder(self._folder, self._target)

    def _add_picture(self, tag: str, picture: Image.Image, epoch: int) -> None:
        """Write a picture as a JPEG: `SummaryWriter.add_image` makes PNGs, which took training a second an epoch."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        image = Summary.Image(
            width=picture.width, height=picture.height, colorspace=3, encoded_image_string=stream.getvalue()
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._writer.file_writer.add_summary(summary, epoch)  # type: ignore[attr-defined] # None once it is closed

    def close(self) -> None:
        """Finish the event file; `add_epoch` has copied all that is in it."""
        self._writer.close()
        if self._scratch:
            self._scratch.cleanup()
