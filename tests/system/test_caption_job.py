"""jobs/caption.py as a command, with an untrained bundle."""

import json
from pathlib import Path

import pytest
from commands import run
from PIL import Image


def test_bad_pictures_cost_the_others_neither_caption_nor_figure(tiny_bundle: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a/x.png", "b/x.png", "x-2.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (0, 0, 100 * number)).save(tmp_path / name)

    pictures = ("a/x.png", "http://host/x.png", "absent.png", "b/x.png", "x-2.png")
    arguments = ("--bundle", tiny_bundle, *pictures, "--attention", "new/folder/out.png")
    done = run("caption.py", *arguments, folder=tmp_path)

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "http://host/x.png: not a location that can be opened" in done.stderr
    assert "absent.png: no such file" in done.stderr
    captions = json.loads(done.stdout)["captions"]
    assert [found["picture"] for found in captions] == list(pictures)
    assert ["caption" in found for found in captions] == [True, False, False, True, True]
    figures = [found["attention"] for found in captions if "attention" in found]
    assert len(set(figures)) == 3
    assert figures[0] == "new/folder/out-x.png"
    assert sorted(f"new/folder/{path.name}" for path in (tmp_path / "new/folder").iterdir()) == sorted(figures)


def test_long_names_cost_nobody_a_figure(tiny_bundle: Path, tmp_path: Path) -> None:
    long = [f"{'長' * 81}{end}.png" for end in "ab"]  # 248 bytes, of the 255 that a name may have
    for name in (*long, "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    pictures = (*long, "c.png", "d" * 300 + ".png")
    done = run("caption.py", "--bundle", tiny_bundle, *pictures, "--attention", "attention.png", folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    captions = json.loads(done.stdout)["captions"]
    assert ["caption" in found for found in captions] == [True, True, True, False]
    figures = [found["attention"] for found in captions if "attention" in found]
    assert len({*figures}) == 3
    assert all((tmp_path / figure).stat().st_size > 0 for figure in figures)


def test_disk_that_is_full_costs_no_caption(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "out.png").symlink_to("/dev/full")
    done = run("caption.py", "--bundle", tiny_bundle, "a.png", "--attention", "out.png", folder=tmp_path)
    assert done.returncode == 2
    (found,) = json.loads(done.stdout)["captions"]
    assert found["error"] == "a.png: its figure cannot be written to out.png (No space left on device)"
    assert found.keys() >= {"caption", "log_probability", "runners_up"}


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("file/out.png", "its folder cannot be made"),
        (".", "a folder; name a file"),
        ("/proc/out.png", "/proc: cannot be written to"),
        ("photo.jpg", "takes the PNG to draw, such as photo.png"),
        ("gs://bucket/out.png", "takes a path on this machine, not a URI"),
        ("./a.png", "would replace the picture ./a.png"),
    ],
)
def test_a_figure_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, attention: str, message: str
) -> None:
    for name in ("file", "a.png", "photo.jpg"):
        (tmp_path / name).touch()

    done = run("caption.py", "--bundle", "absent", "a.png", "--attention", attention, folder=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_search_can_be_changed(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    search = ("--beam-width", "2", "--max-words", "1", "--length-penalty", "0")
    done = run("caption.py", "--bundle", tiny_bundle, "a.png", *search, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["captions"]
    assert len(found["caption"].split()) <= 1
    assert len(found["runners_up"]) <= 1


def test_a_ray_job_draws_no_figure_into_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    done = run("caption.py", "--bundle", "absent", "a.png", "--attention", "figures/out.png", folder=tmp_path)
    assert done.returncode == 2
    assert "--attention figures/out.png: in a Ray job, name an absolute folder" in done.stderr
    assert not (tmp_path / "figures").exists()
