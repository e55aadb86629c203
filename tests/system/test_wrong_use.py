"""Wrong use of the jobs that run on Ray: refused with exit code 2 and a clear message, before Ray is started."""

from pathlib import Path

import pytest
from commands import run


def refusal(folder: Path, job: str, *arguments: str) -> str:
    """Run a job in `folder`, check that it ends as wrong use does, and return what it says, in one line."""
    done = run(f"{job}.py", *arguments, folder=folder)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_decoding_options_out_of_bounds(tmp_path: Path) -> None:
    flags = ("--beam-width", "0", "--max-words", "500", "--length-penalty", "9")
    message = refusal(tmp_path, "evaluate", "--bundle", "absent", "--data", "absent", *flags)
    assert "beam_width │ │ Input should be greater than or equal to 1" in message
    assert "max_words │ │ Input should be less than or equal to 100" in message
    assert "length_penalty │ │ Input should be less than or equal to 2" in message


def test_the_quick_start_keeps_the_pictures_that_it_is_given(tmp_path: Path) -> None:
    for output in (".", "out"):
        picture = tmp_path / output / "source" / "Images" / "a.jpg"
        picture.parent.mkdir(parents=True)
        picture.touch()
        message = refusal(tmp_path, "quickstart", "--output", output, "--source", f"{output}/source")
        assert "lies in --output" in message
        assert "choose another --output" in message
        assert picture.exists()


def test_the_quick_start_keeps_folders_that_it_has_not_made(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").touch()
    message = refusal(tmp_path, "quickstart", "--output", ".")
    assert "holds data, which was not written here" in message
    assert "choose another output" in message
    assert (tmp_path / "data" / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_quick_start_is_asked_for_workers_that_cannot_share_a_step(tmp_path: Path) -> None:
    message = refusal(tmp_path, "quickstart", "--num-workers", "3")
    assert "--num-workers 3: cannot share 4 pictures a step evenly; choose one of 1, 2, 4" in message
    assert not list(tmp_path.iterdir())


def test_home_of_nobody(tmp_path: Path) -> None:
    for places in (["--output", "~no-such-user/q"], ["--source", "~no-such-user/s"]):
        assert "has no such home" in refusal(tmp_path, "quickstart", *places)
    message = refusal(tmp_path, "evaluate", "--bundle", "absent", "--data", "~no-such-user/data")
    assert "~no-such-user/data" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b", "", ".hidden"])
def test_name_that_is_none(name: str, tmp_path: Path) -> None:
    places = ("--data", "absent", "--storage", "runs", "--name", name)
    message = refusal(tmp_path, "train", "flickr8k", *places)
    assert "name │ │ String should match pattern" in message
    assert not (tmp_path / "runs").exists()


def test_a_sweep_of_which_some_trial_could_not_run(tmp_path: Path) -> None:
    places = ("--data", "absent", "--features", "absent", "--storage", "runs", "--name", "x")
    message = refusal(tmp_path, "tune", "flickr8k", *places, "--space.batch-size", "80", "42")
    assert "batch_size (42) must be a multiple of captions_per_picture (5)" in message
    assert "narrow the space" in message
    assert not (tmp_path / "runs").exists()


def test_promoting_into_a_config_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(tmp_path, "promote", "--candidate", "absent", "--data", "absent", "--serve-config", "absent.yaml")
    assert "absent.yaml: there is no such Serve config; name one by --serve-config" in message
