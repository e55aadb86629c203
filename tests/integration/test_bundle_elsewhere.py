"""A bundle is all that another process needs to caption as this one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from caption_ray.inference import Captioner

CAPTION = """
import json, sys
import numpy as np
from caption_ray.inference import Captioner
picture = (np.arange(3 * 64 * 64).reshape(3, 64, 64) % 251).astype(np.uint8)
(captions,) = Captioner.load(sys.argv[1]).caption([picture])
print(json.dumps([[c.text, c.log_probability] for c in captions]))
"""


def test_another_process_captions_alike(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CAPTION, tiny_bundle.name],
        cwd=tiny_bundle.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    picture = (np.arange(3 * 64 * 64).reshape(3, 64, 64) % 251).astype(np.uint8)
    (captions,) = Captioner.load(str(tiny_bundle), torch.device("cpu")).caption([picture])
    answers = json.loads(done.stdout)
    assert len(answers) == 4
    assert [text for text, _ in answers] == [caption.text for caption in captions]
    assert [log_probability for _, log_probability in answers] == pytest.approx(
        [caption.log_probability for caption in captions], abs=1e-4
    )
