import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from caption_ray.config import CaptionRules, VocabularyConfig
from caption_ray.data.prepare import prepare_dataset
from caption_ray.data.shards import DatasetManifest, load_manifest
from caption_ray.errors import BadInputError, DatasetError, UsageError

JOB = Path(__file__).parents[2] / "jobs" / "prepare_data.py"
NAMES = [f"{number:02d}.jpg" for number in range(12)]
SPLIT_OF = dict.fromkeys(NAMES[:8], "train") | {"08.jpg": "dev", "09.jpg": "dev", "10.jpg": "test"}


def encode_picture(number: int, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (number * 20, 50, 200)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_captions(folder: Path, rows: list[tuple[str, ...]]) -> None:
    with (folder / "captions.txt").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve pictures, 30 to 41 pixels wide and 20 high, two captions each; the lists leave 11.jpg out."""
    folder = tmp_path / "source"
    (folder / "Images").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / "Images" / name).write_bytes(encode_picture(number, (30 + number, 20)))
    write_captions(
        folder,
        [(name, caption) for name in NAMES for caption in ("A red dog runs .", f"A dog, number n{name[:2]}")],
    )
    for split in ("train", "dev", "test"):
        names = [name for name, its_split in SPLIT_OF.items() if its_split == split]
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    return folder


def prepare(
    source: Path, output: Path, *, skip_bad: bool = False, overwrite: bool = False, min_count: int = 5
) -> DatasetManifest:
    return prepare_dataset(
        str(source),
        str(output),
        skip_bad=skip_bad,
        overwrite=overwrite,
        rules=CaptionRules(),
        vocabulary=VocabularyConfig(min_count=min_count),
    )


def read_json(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.usefixtures("local_ray")
class TestPrepare:
    def test_pictures_and_captions_come_out_as_they_went_in(self, source: Path, tmp_path: Path) -> None:
        manifest = prepare(source, tmp_path / "data")

        assert load_manifest(str(tmp_path / "data")) == manifest
        assert {name: split.num_pictures for name, split in manifest.splits.items()} == {
            "train": 8,
            "dev": 2,
            "test": 1,
        }
        assert (manifest.num_pictures, manifest.num_captions, manifest.num_left_out) == (11, 22, 0)
        rows = [
            row
            for split in manifest.splits.values()
            for file in split.files
            for row in pq.read_table(tmp_path / "data" / file.name).to_pylist()
        ]
        assert [row["name"] for row in rows] == NAMES[:11]
        for number, row in enumerate(rows):
            assert row == {
                "name": NAMES[number],
                "image": (source / "Images" / NAMES[number]).read_bytes(),
                "captions": ["A red dog runs .", f"A dog, number n{number:02d}"],
                "split": SPLIT_OF[NAMES[number]],
                "width": 30 + number,
                "height": 20,
            }

    def test_a_vocabulary_without_words_is_refused(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"no word of the training captions is there 17 times.*--min-count 1"):
            prepare(source, tmp_path / "data", min_count=17)
        assert not (tmp_path / "data").exists()

    def test_words_captions_and_report_are_those_of_the_splits(self, source: Path, tmp_path: Path) -> None:
        prepare(source, tmp_path / "data", min_count=8)

        # Words of the 8 training pictures: a 16, dog 16, number 8, red 8, runs 8; n00 to n07 once each.
        vocabulary = read_json(tmp_path / "data" / "vocabulary.json")
        assert vocabulary["words"] == [
            *("<pad>", "<start>", "<end>", "<unk>"),
            *("a", "dog", "number", "red", "runs"),
        ]
        captions = read_json(tmp_path / "data" / "captions.json")
        assert list(captions) == NAMES[:11]
        assert captions["10.jpg"] == ["A red dog runs .", "A dog, number n10"]
        for split in ("train", "dev", "test"):
            assert read_json(tmp_path / "data" / f"captions_{split}.json") == {
                name: captions[name] for name, its_split in SPLIT_OF.items() if its_split == split
            }
        report = read_json(tmp_path / "data" / "report.json")
        # Each picture has 4 + 4 words, of which one, its number, is unknown.
        assert report["splits"] == {
            "train": {"pictures": 8, "captions": 16, "words": 64, "unknown_word_share": 0.125},
            "dev": {"pictures": 2, "captions": 4, "words": 16, "unknown_word_share": 0.125},
            "test": {"pictures": 1, "captions": 2, "words": 8, "unknown_word_share": 0.125},
        }
        assert report["vocabulary_size"] == 9
        assert report["unlisted_pictures"] == ["11.jpg"]
        assert report["left_out"] == []

    def test_the_same_source_gives_the_same_files(self, source: Path, tmp_path: Path) -> None:
        first = prepare(source, tmp_path / "data")

        assert prepare(source, tmp_path / "data", overwrite=True) == first
        with pytest.raises(UsageError, match="--overwrite"):
            prepare(source, tmp_path / "data")

    def test_pictures_that_no_list_names_are_told(
        self, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        prepare(source, tmp_path / "data")
        assert "1 picture(s), such as 11.jpg, are in none of the three lists and are left out" in caplog.text

    def test_all_that_is_wrong_is_told_in_one_run(self, source: Path, tmp_path: Path) -> None:
        spoil(source)

        with pytest.raises(BadInputError) as caught:
            prepare(source, tmp_path / "data")

        message = str(caught.value)
        assert "captions.txt:4: " in message
        assert "captions.txt:7: " in message
        assert "captions.txt:26: " in message
        assert "Images/03.jpg: " in message
        assert "Images/04.jpg: " in message
        assert "Images/extra.jpg: " in message
        assert "--skip-bad" in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]

    def test_skipped_problems_are_in_the_report(self, source: Path, tmp_path: Path) -> None:
        spoil(source)

        manifest = prepare(source, tmp_path / "data", skip_bad=True)

        left_out = read_json(tmp_path / "data" / "report.json")["left_out"]
        assert isinstance(left_out, list)
        assert sorted((problem["kind"], problem["name"]) for problem in left_out) == [
            ("broken_picture", "03.jpg"),
            ("broken_picture", "04.jpg"),
            ("duplicate_caption", "02.jpg"),
            ("missing_picture", "absent.jpg"),
            ("no_captions", "extra.jpg"),
            ("short_caption", "01.jpg"),
        ]
        assert manifest.num_left_out == 6
        # Two broken pictures take 2 x 2 captions with them, two captions are left out by themselves.
        assert (manifest.num_pictures, manifest.num_captions) == (9, 16)
        captions = read_json(tmp_path / "data" / "captions.json")
        assert captions["01.jpg"] == ["A dog, number n01"]
        assert captions["02.jpg"] == ["A red dog runs ."]
        assert "03.jpg" not in captions
        (file,) = manifest.splits["train"].files
        names = pq.read_table(tmp_path / "data" / file.name)["name"].to_pylist()
        assert names == ["00.jpg", "01.jpg", "02.jpg", "05.jpg", "06.jpg", "07.jpg"]

    def test_without_a_training_picture_there_is_no_data_set(self, source: Path, tmp_path: Path) -> None:
        (source / "Flickr_8k.trainImages.txt").write_text("")

        with pytest.raises(DatasetError, match="no picture is left to train on"):
            prepare(source, tmp_path / "data")

        assert not (tmp_path / "data").exists()


def spoil(source: Path) -> None:
    """Put one problem of each kind that this step meets into the source."""
    with (source / "captions.txt").open(encoding="utf-8", newline="") as file:
        rows = [(row[0], row[1]) for row in csv.reader(file)][1:]  # the first is on line 2
    rows[2] = ("01.jpg", "Dog")  # line 4: one word
    rows[5] = ("02.jpg", "A red dog runs .")  # line 7: as line 6
    write_captions(source, [*rows, ("absent.jpg", "A dog that is not there")])  # line 26
    (source / "Images" / "03.jpg").write_bytes(encode_picture(3, (33, 20))[:-40])
    (source / "Images" / "04.jpg").write_bytes(b"")
    (source / "Images" / "extra.jpg").write_bytes(encode_picture(1, (8, 8)))


def start_job(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, JOB, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_the_job_prints_json_and_keeps_its_token_private(source: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path / "home")

    job = start_job("--source", source, "--output", tmp_path / "data", environment=environment)
    stdout, stderr = job.communicate(timeout=600)

    assert job.returncode == 0, stderr
    assert json.loads(stdout) == {
        "output": str(tmp_path / "data"),
        "pictures": {"train": 8, "dev": 2, "test": 1},
        "captions": {"train": 16, "dev": 4, "test": 2},
        "vocabulary_size": 9,
        "left_out": 0,
        "unlisted": 1,
        "report": str(tmp_path / "data" / "report.json"),
    }
    assert "11 of 11 pictures" in stderr
    assert (tmp_path / "home" / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("folder", "exit_code", "message"),
    [("absent", 2, "no such folder"), ("empty", 1, "found no caption file")],
)
def test_the_job_fails_with_a_message(tmp_path: Path, folder: str, exit_code: int, message: str) -> None:
    (tmp_path / "empty").mkdir()

    job = start_job("--source", tmp_path / folder, "--output", tmp_path / "data")
    stdout, stderr = job.communicate(timeout=600)

    assert job.returncode == exit_code
    assert stdout == ""
    assert message in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "data").exists()


def test_a_killed_job_leaves_nothing_that_passes_for_a_data_set(source: Path, tmp_path: Path) -> None:
    # Big, plain pictures: few bytes, slow to decode.
    stream = io.BytesIO()
    Image.new("RGB", (1200, 1200)).save(stream, "PNG")
    names = [f"{number:03d}.png" for number in range(512)]
    for name in names:
        (source / "Images" / name).write_bytes(stream.getvalue())
    write_captions(source, [(name, "A dark square") for name in [*NAMES, *names]])
    (source / "Flickr_8k.trainImages.txt").write_text("\n".join([*NAMES[:8], *names]))

    job = start_job("--source", source, "--output", tmp_path / "data")
    partial = tmp_path / "data.partial"
    deadline = time.monotonic() + 120
    while not any(partial.glob("*.parquet")):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate(timeout=60)

    assert job.returncode == -signal.SIGKILL
    assert not (tmp_path / "data").exists()
    with pytest.raises(DatasetError, match="not a prepared data set"):
        load_manifest(str(partial))

    again = start_job("--source", source, "--output", tmp_path / "data")
    stdout, stderr = again.communicate(timeout=600)
    assert again.returncode == 0, stderr
    assert json.loads(stdout)["pictures"] == {"train": 520, "dev": 2, "test": 1}
    assert load_manifest(str(tmp_path / "data")).num_pictures == 523
    assert not partial.exists()
