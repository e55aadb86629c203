"""gs:// through pyarrow, against an object store on this machine."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from killing import kill_with_family
from object_store import list_objects, new_bucket
from small import EXPERIMENT, numbers

from caption_ray import storage
from caption_ray.bundle import load_bundle, read_manifest
from caption_ray.data.output_folder import output_folder
from caption_ray.errors import BundleError
from caption_ray.train.trainer import TrainRequest, train

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "gcp"))
from upload_bundle import Arguments  # noqa: E402
from upload_bundle import main as upload_bundle  # noqa: E402


def test_files_in_a_bucket_are_files(bucket: str, tmp_path: Path) -> None:
    place = f"{bucket}/a%20folder"
    storage.write_text(storage.join(place, "one 1.txt"), "first")
    storage.write_text(storage.join(place, "one 1.txt"), "zweiter é")
    storage.write_bytes(storage.join(place, "deep", "two"), bytes(5 << 20))
    assert storage.read_text(storage.join(place, "one 1.txt")) == "zweiter é"
    assert storage.num_bytes(storage.join(place, "deep", "two")) == 5 << 20
    assert storage.num_bytes(storage.join(place, "three")) is None
    assert storage.list_files(place) == ["deep/two", "one 1.txt"]
    # No objects stand for folders: making them would need rights over the bucket itself.
    assert list_objects("captions") == ["a folder/deep/two", "a folder/one 1.txt"]
    storage.copy_folder(place, str(tmp_path / "here"))
    assert (tmp_path / "here" / "deep" / "two").stat().st_size == 5 << 20
    storage.copy_folder(str(tmp_path / "here"), f"{bucket}/copy")
    assert storage.list_files(f"{bucket}/copy") == ["deep/two", "one 1.txt"]
    # Others, Ray Train among them, do make such objects; they go with what is in the folder.
    filesystem, path = storage.open_location(f"{bucket}/copy/empty")
    filesystem.create_dir(path, recursive=True)
    assert "copy/empty/" in list_objects("captions")
    for folder in (place, f"{bucket}/copy", f"{bucket}/never-there"):
        storage.delete_folder(folder)
        assert not storage.exists(folder)
    assert list_objects("captions") == []


def test_output_is_written_without_an_object_that_stands_for_its_folder(bucket: str) -> None:
    """Whoever may write objects may not make folders: that would take rights over the bucket itself."""
    ours = re.compile("done|part")
    with output_folder(f"{bucket}/data", marker="done", our_files=ours, overwrite=False) as folder:
        storage.write_text(f"{folder}/part", "")
        assert not [name for name in list_objects("captions") if name.endswith("/")]
        storage.write_text(f"{folder}/done", "")
    assert list_objects("captions") == ["data/done", "data/part"]


def test_bundle_is_uploaded_once_under_its_digest_and_loads_from_there(
    bucket: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    script = ROOT / "gcp" / "upload_bundle.py"
    command = [sys.executable, script, "--bundle", tiny_bundle, "--destination", f"{bucket}/bundles"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    digest = read_manifest(str(tiny_bundle)).digest
    assert result == {"bundle": f"{bucket}/bundles/tiny-{digest[:12]}", "digest": digest, "copied": True}
    assert load_bundle(result["bundle"]).metrics == load_bundle(str(tiny_bundle)).metrics
    place = Arguments(bundle=str(tiny_bundle), destination=f"{bucket}/bundles/")
    assert upload_bundle(place) == {**result, "copied": False}
    # What was damaged in the bucket is not taken for what was uploaded, and neither is what was damaged before.
    storage.write_text(storage.join(result["bundle"], "metrics.json"), "{}")
    with pytest.raises(BundleError, match=r"gs://.*metrics\.json: not what manifest\.json says"):
        load_bundle(result["bundle"])
    assert upload_bundle(place) == result
    assert load_bundle(result["bundle"]).metrics == load_bundle(str(tiny_bundle)).metrics
    damaged = Path(shutil.copytree(tiny_bundle, tmp_path / "damaged"))
    (damaged / "config.json").write_text("{}")
    other = new_bucket("other")
    with pytest.raises(BundleError, match=r"config\.json: not what manifest\.json says"):
        upload_bundle(Arguments(bundle=str(damaged), destination=other))
    assert list_objects("other") == []


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_run_in_a_bucket_trains_goes_on_and_ends_like_one_on_disk(
    bucket: str, request_two: TrainRequest, undisturbed: dict[str, object]
) -> None:
    # Cut off before its bundle was written, on disk, and taken to the bucket: it goes on from its last checkpoint.
    request = replace(request_two, storage=f"{bucket}/runs")
    storage.copy_folder(request_two.run_folder, request.run_folder)
    storage.delete_folder(f"{request.run_folder}/bundle")
    gone_on = train(request)
    assert not gone_on.was_finished
    assert gone_on.bundle == f"{bucket}/runs/undisturbed/bundle"
    assert gone_on.metrics == undisturbed
    assert load_bundle(gone_on.bundle).metrics == undisturbed
    again = train(request)
    assert again.was_finished
    # Anew, all of it in the bucket.
    fresh = train(replace(request, name="fresh"))
    assert not fresh.was_finished
    assert numbers(fresh.metrics) == numbers(undisturbed)
    assert any("/tensorboard/events" in name for name in list_objects("captions"))


@pytest.mark.slow
def test_job_killed_while_it_trains_into_a_bucket_goes_on(
    bucket: str, request_two: TrainRequest, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    settings = tmp_path / "request.json"
    place = f"{bucket}/killed"
    settings.write_text(
        json.dumps(
            {
                "experiment": EXPERIMENT.model_dump(mode="json"),
                "data": request_two.data,
                "features": request_two.features,
                "storage": place,
            }
        )
    )
    command = [sys.executable, Path(__file__).with_name("run_training.py"), settings]
    with (tmp_path / "job.log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while not storage.exists(f"{place}/job/checkpoint_manager_snapshot.json"):
            assert job.poll() is None, (tmp_path / "job.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "job.log").read_text()[-3000:]
            time.sleep(0.1)
        kill_with_family(job)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on with run job" in done.stderr
    assert numbers(json.loads(done.stdout.splitlines()[-1])) == numbers(undisturbed)
