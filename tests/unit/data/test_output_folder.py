import functools
import itertools
import os
import threading
from pathlib import Path

import pytest
from filling import OURS, fill

from caption_ray import storage
from caption_ray.data.output_folder import clear_parts, output_folder
from caption_ray.errors import RunError, UsageError
from caption_ray.lock import Driver, sole_driver


def test_the_output_appears_at_the_end_and_whole(tmp_path: Path) -> None:
    output = tmp_path / "new" / "data"
    with output_folder(str(output), marker="done", our_files=OURS, overwrite=False) as folder:
        (Path(folder) / "part").write_text("1")
        assert not output.exists()

    assert (output / "part").read_text() == "1"
    assert [path.name for path in output.parent.iterdir()] == ["data"]


def test_a_second_one_at_work_is_refused_and_spoils_nothing(tmp_path: Path) -> None:
    output = tmp_path / "data"
    other = Driver(host="elsewhere", pid=7)
    beside = str(tmp_path / "data.driver.json")
    storage.write_text(beside, other.model_dump_json())

    def beat(ended: threading.Event) -> None:
        for number in itertools.count(1):
            if ended.wait(0.2):
                return
            storage.write_text(beside, other.model_copy(update={"num_beats": number}).model_dump_json())

    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "part").write_text("the first one's")
    ended = threading.Event()
    first = threading.Thread(target=beat, args=(ended,))
    first.start()
    with pytest.raises(RunError, match="process 7 on elsewhere works on this folder"):
        fill(output, "new")
    ended.set()
    first.join()
    assert (tmp_path / "data.partial" / "part").read_text() == "the first one's"
    assert not output.exists()


@pytest.mark.parametrize("target", ["absent", "folder"])
def test_a_link_wherever_it_leads_is_a_strangers_file(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "data").mkdir()
    link = tmp_path / "data" / "pictures"
    link.symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match="holds pictures, which was not written here"):
        fill(tmp_path / "data", "new", overwrite=True)
    assert link.is_symlink()


def test_a_full_disk_is_told_with_the_place() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full/part'"), storage.naming("/dev/full/part"):
        storage.open_location("/dev/full")[0].open_output_stream("/dev/full").write(bytes(2**20))


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: str) -> None:
        (Path(folder) / "part").write_text("1")
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        output_folder(str(tmp_path / "data"), marker="done", our_files=OURS, overwrite=False) as folder,
    ):
        fail(folder)

    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "part").write_text("old")

    fill(tmp_path / "data", "new")

    assert (tmp_path / "data" / "part").read_text() == "new"
    assert not (tmp_path / "data.partial").exists()


@pytest.mark.parametrize("folder", ["data", "data.partial"])
def test_a_file_that_a_kill_cut_off_is_no_strangers(tmp_path: Path, folder: str) -> None:
    """`storage.write_bytes` was killed before it gave the file its name."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "part.4711.partial").write_text("cut o")

    fill(tmp_path / "data", "new")

    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["done", "part"]


def test_a_complete_output_is_kept_unless_told(tmp_path: Path) -> None:
    fill(tmp_path / "data", "1")

    with pytest.raises(UsageError, match=r"complete already .*--overwrite"):
        fill(tmp_path / "data", "2")
    assert (tmp_path / "data" / "part").read_text() == "1"

    fill(tmp_path / "data", "2", overwrite=True)
    assert (tmp_path / "data" / "part").read_text() == "2"


def test_a_failed_replacement_keeps_the_old_output(tmp_path: Path) -> None:
    fill(tmp_path / "data", "1")

    with (
        pytest.raises(ValueError),
        output_folder(str(tmp_path / "data"), marker="done", our_files=OURS, overwrite=True),
    ):
        raise ValueError

    assert (tmp_path / "data" / "part").read_text() == "1"
    assert (tmp_path / "data" / "done").exists()


@pytest.mark.parametrize("folder", ["data", "data.partial", "data.replaced.partial"])
@pytest.mark.parametrize("stranger", ["holiday.jpg", "deeper/part", "holiday.jpg.4711.partial"])
def test_a_strangers_files_are_never_deleted(tmp_path: Path, folder: str, stranger: str) -> None:
    file = tmp_path / folder / stranger
    file.parent.mkdir(parents=True)
    file.write_text("mine")

    with pytest.raises(UsageError, match=f"holds {stranger}"):
        fill(tmp_path / "data", "1", overwrite=True)

    assert file.read_text() == "mine"


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")

    with pytest.raises(UsageError, match="a file, not a folder"):
        fill(tmp_path / "data", "1", overwrite=True)


def test_an_output_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(UsageError, match=r"/proc/absent: cannot be written to .*; choose another output"):
        fill(Path("/proc/absent/data"), "1")


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be renamed away when all is done."""
    output = tmp_path / "volume"
    output.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == output)

    with pytest.raises(UsageError, match=f"{output}: a file system is mounted there.*such as {output}/output"):
        fill(output, "1")

    assert [path.name for path in tmp_path.iterdir()] == ["volume"]
    fill(output / "output", "1")
    assert (output / "output" / "part").read_text() == "1"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()

    fill(tmp_path / "data", "1")

    assert (tmp_path / "data" / "part").read_text() == "1"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "target")

    fill(tmp_path / "data", "1")

    assert (tmp_path / "data").is_symlink()
    assert (tmp_path / "target" / "part").read_text() == "1"


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_ray.data.output_folder.sole_driver", functools.partial(sole_driver, beat_s=0.8))


def test_a_uri_is_written_in_place_and_cleared_on_failure(tmp_path: Path) -> None:
    output = f"file://{tmp_path}/data"
    with output_folder(output, marker="done", our_files=OURS, overwrite=False) as folder:
        assert folder == output
        (tmp_path / "data" / "part").write_text("1")
        (tmp_path / "data" / "done").write_text("")

    def fail() -> None:
        assert not (tmp_path / "data" / "done").exists()
        raise ValueError

    with (
        pytest.raises(ValueError),
        output_folder(output, marker="done", our_files=OURS, overwrite=True),
    ):
        fail()

    assert not (tmp_path / "data").exists()


def test_parts_of_an_earlier_run_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    clear_parts(folder, ["data", "figure.png"], marker="mark")
    assert [path.name for path in folder.iterdir()] == ["mark"]
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "figure.png").touch()
    (folder / "notes.txt").touch()

    clear_parts(folder, ["data", "figure.png"], marker="mark")

    assert sorted(path.name for path in folder.iterdir()) == ["mark", "notes.txt"]


@pytest.mark.parametrize("part", ["data/mine.txt", "figure.png"])
def test_parts_in_an_unmarked_folder_are_a_strangers(tmp_path: Path, part: str) -> None:
    (tmp_path / part).parent.mkdir(exist_ok=True)
    (tmp_path / part).write_text("mine")

    with pytest.raises(UsageError, match=f"holds {Path(part).parts[0]}, which was not written here .*another output"):
        clear_parts(tmp_path, ["data", "figure.png"], marker="mark")

    assert (tmp_path / part).read_text() == "mine"
    assert not (tmp_path / "mark").exists()


def test_a_link_among_the_parts_is_deleted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mark").touch()
    (tmp_path / "out" / "data").symlink_to(tmp_path / "mine")

    clear_parts(tmp_path / "out", ["data"], marker="mark")

    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / "out" / "data").is_symlink()


def test_parts_need_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match="a file, not a folder"):
        clear_parts(tmp_path / "file", ["data"], marker="mark")


def test_parts_need_a_folder_that_can_be_written_to() -> None:
    with pytest.raises(UsageError, match=r"/proc/absent: cannot be written to .*; choose another output"):
        clear_parts(Path("/proc/absent"), ["data"], marker="mark")


def test_file_that_is_called_as_ours_may_be_anothers(tmp_path: Path) -> None:
    output = tmp_path / "data"
    output.mkdir()
    (output / "part").write_text("years of work")
    with pytest.raises(UsageError, match=r"data: holds part, but no done, .*--overwrite"):
        fill(output, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (output / "part").read_text() == "years of work"

    fill(output, "new", overwrite=True)
    assert (output / "part").read_text() == "new"
