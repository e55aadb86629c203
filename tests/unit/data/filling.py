"""An output folder of two files."""

import re
from pathlib import Path

from caption_ray.data.output_folder import output_folder

OURS = re.compile("part|done")


def fill(output: Path, text: str, *, overwrite: bool = False) -> None:
    with output_folder(str(output), marker="done", our_files=OURS, overwrite=overwrite) as folder:
        (Path(folder) / "part").write_text(text)
        (Path(folder) / "done").write_text("")
