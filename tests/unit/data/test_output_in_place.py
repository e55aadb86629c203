"""How a finished output takes its place, and what becomes of the one that was there."""

from pathlib import Path

import pytest
from filling import OURS, fill

from caption_ray.data.output_folder import output_folder
from caption_ray.errors import RunError, UsageError


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_that_somebody_puts_there_meanwhile_is_not_deleted(tmp_path: Path, overwrite: bool) -> None:
    output = tmp_path / "data"
    if overwrite:
        fill(output, "1")

    def fill_meanwhile() -> None:
        with output_folder(str(output), marker="done", our_files=OURS, overwrite=overwrite) as folder:
            (Path(folder) / "done").write_text("2")
            output.mkdir(exist_ok=True)
            (output / "thesis.txt").write_text("mine")

    with pytest.raises(UsageError, match=r"holds thesis\.txt, .*What has been written is whole, in .*data\.partial"):
        fill_meanwhile()

    assert (output / "thesis.txt").read_text() == "mine"
    assert (output / "done").exists() == overwrite
    assert (tmp_path / "data.partial" / "done").read_text() == "2"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_an_output_outlives_an_end_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    output = tmp_path / "data"
    fill(output, "1")
    rename, done = Path.rename, list[Path]()

    def cut(self: Path, target: str) -> Path:
        if len(done) >= renames:
            raise SystemExit  # and none of what would put things right is to work either: as if killed
        done.append(rename(self, target))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        if renames < 2:
            with pytest.raises(SystemExit):
                fill(output, "2", overwrite=True)
        else:
            fill(output, "2", overwrite=True)

    with pytest.raises(UsageError, match="is complete already"):
        fill(output, "3")
    assert (output / "part").read_text() == ("1" if renames < 2 else "2")
    fill(output, "4", overwrite=True)
    assert (output / "part").read_text() == "4"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("is_there", [True, False])
def test_an_output_is_put_back_where_another_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    output = tmp_path / "data"
    if is_there:
        fill(output, "1")
    rename = Path.rename

    def fail(self: Path, target: str) -> Path:
        if self.name == "data.partial":
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(RunError, match=r"no space left. What has been written is whole, in .*data\.partial"):
        fill(output, "2", overwrite=True)
    assert output.exists() == is_there
    assert not is_there or (output / "part").read_text() == "1"


def test_what_has_the_replaced_ones_name_is_not_deleted(tmp_path: Path) -> None:
    output, other = tmp_path / "data", tmp_path / "data.replaced.partial"

    def fill_meanwhile() -> None:
        with output_folder(str(output), marker="done", our_files=OURS, overwrite=True) as folder:
            (Path(folder) / "done").write_text("2")
            output.rename(other)
            (other / "thesis.txt").write_text("mine")

    fill(output, "1")
    with pytest.raises(UsageError, match=r"is in the way. What has been written is whole"):
        fill_meanwhile()
    assert (other / "thesis.txt").read_text() == "mine"
    with pytest.raises(UsageError, match=r"holds thesis\.txt"):
        fill(output, "3")
    assert (other / "thesis.txt").read_text() == "mine"


def test_half_of_what_was_replaced_is_not_put_back(tmp_path: Path) -> None:
    (tmp_path / "data.replaced.partial").mkdir()
    (tmp_path / "data.replaced.partial" / "part").write_text("1")
    fill(tmp_path / "data", "2")
    assert (tmp_path / "data" / "part").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
