"""gcp/gke.sh, run: from nothing to a service, to another bundle and back, and back to nothing, on a stand-in cloud."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
ONE, TWO = "gs://p-caption-ray/bundles/one-0123456789ab", "gs://p-caption-ray/bundles/two-ba9876543210"
THREE = "gs://p-caption-ray/bundles/three-333333333333"
DAMAGED = ONE.replace("one-", "damaged-")

Gke = Callable[..., subprocess.CompletedProcess[str]]
Cloud = Callable[..., dict[str, Any]]


def gke_on(folder: Path) -> Gke:
    for tool in ("gcloud", "kubectl", "helm", "curl"):
        script = folder / tool
        script.write_text(f"#!{sys.executable}\n{Path(__file__).with_name('stand_in_cloud.py').read_text()}")
        script.chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CLOUD": str(folder / "cloud.json"),
        "PYTHON": sys.executable,
        **{"PROJECT": "p", "HOST": "captions.example.com", "TAG": "abc1234", "ANSWERS": "3", "SECONDS_BETWEEN": "0"},
    }

    def run(*arguments: str, code: int = 0, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [ROOT / "gcp" / "gke.sh", *arguments]
        settings = {**environment, **changes}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture
def gke(tmp_path: Path) -> Gke:
    return gke_on(tmp_path)


@pytest.fixture(scope="module")
def with_one(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a cloud that answers with the bundle ONE."""
    folder = tmp_path_factory.mktemp("cloud")
    for arguments in (("up",), ("deploy", ONE)):
        gke_on(folder)(*arguments)
    return (folder / "cloud.json").read_text()


@pytest.fixture
def service(gke: Gke, with_one: str, tmp_path: Path) -> Gke:
    (tmp_path / "cloud.json").write_text(with_one)
    return gke


@pytest.fixture
def cloud(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def state(**changes: object) -> dict[str, Any]:
        """Return the cloud as it is, once it has been changed."""
        file = tmp_path / "cloud.json"
        found: dict[str, Any] = json.loads(file.read_text()) | changes
        file.write_text(json.dumps(found))
        return found

    return state


def answering(cloud: dict[str, Any]) -> str:
    config = yaml.safe_load(cloud["service"]["spec"]["serveConfigV2"])
    bundle: str = config["applications"][0]["deployments"][1]["user_config"]["bundle"]
    return bundle


def test_from_nothing_and_back_to_nothing(gke: Gke, cloud: Cloud) -> None:
    gke("up")
    made = cloud()["things"]
    assert len(made) == 8
    gke("up")  # again: the stand-in refuses to make anything twice
    assert cloud()["things"] == made
    grants = [" ".join(call) for call in cloud()["calls"] if "add-iam-policy-binding" in call]
    account = "serviceAccount:123-compute@developer.gserviceaccount.com"
    for role in ("cloudbuild.builds.builder", "container.defaultNodeServiceAccount", "artifactregistry.reader"):
        assert any(f"--role=roles/{role} --member={account}" in grant for grant in grants), role
    assert grants[-1].endswith(
        "/projects/123/locations/global/workloadIdentityPools/p.svc.id.goog/namespace/caption-ray"
    )

    gke("deploy", ONE)  # answers nothing before its certificate is there, so that was waited for
    key = cloud()["keys"]
    assert len(key) == 48
    assert key not in str(cloud()["calls"])
    assert gke("key").stdout.strip() == key
    assert answering(cloud()) == ONE
    generation = cloud()["generation"]
    cloud(calls=[])
    gke("deploy", ONE)
    assert ["kubectl", "apply", "--filename=gcp/cluster.yaml"] not in cloud()["calls"], "it would shut Redis out"
    assert cloud()["keys"] == key
    assert "pending" not in cloud()
    assert cloud()["active"]["name"] == "cluster-1"
    assert cloud()["generation"] == generation + 1

    cloud(calls=[])
    done = gke("roll-out", TWO)
    assert "3 answers in a row for each worker come from ba9876543210" in done.stderr
    assert sum(tool == "curl" for tool, *_ in cloud()["calls"]) == 6, "there are two workers"
    assert answering(cloud()) == TWO
    gke("roll-back")
    assert answering(cloud()) == ONE
    assert '"id":"0123456789ab' in gke("status").stdout

    gke("down")
    assert cloud()["things"] == ["storage buckets gs://p-caption-ray"]
    gke("down", "--bundles")
    assert cloud()["things"] == []
    gke("down", "--bundles")  # again: there is nothing to delete


def test_what_cannot_be_looked_up_is_not_taken_for_absent(service: Gke, cloud: Cloud) -> None:
    """A cluster that is left running costs money."""
    things = cloud(trouble="(gcloud.container.clusters.describe) ResponseError: code=503, try again later")["things"]
    done = service("down", "--bundles", code=2)
    assert "gcp/gke.sh: gcloud container clusters describe caption-ray" in done.stderr
    assert "code=503, try again later" in done.stderr
    assert cloud()["things"] == things
    service("up", code=2)
    assert cloud()["things"] == things


def test_roll_back_goes_to_the_bundle_before_whatever_brought_the_one_after(service: Gke, cloud: Cloud) -> None:
    service("roll-out", TWO)
    service("deploy", THREE)
    service("deploy", THREE)  # repeated, it forgets nothing
    service("roll-back")
    assert answering(cloud()) == TWO
    service("roll-back")
    assert answering(cloud()) == THREE


def test_bundle_that_is_refused_ends_the_roll_out_at_once(service: Gke, cloud: Cloud) -> None:
    cloud(calls=[])
    done = service("roll-out", DAMAGED, code=2)
    assert f"{DAMAGED} was refused" in done.stderr
    assert "not what manifest.json says" in done.stderr
    assert sum(tool == "curl" for tool, *_ in cloud()["calls"]) == 1
    cloud(calls=[])
    for command in ("deploy", "roll-out"):
        assert "a bundle's URI ends in its digest" in service(command, "gs://b/bundles/one", code=2).stderr
    assert cloud()["calls"] == []


def test_bundle_that_is_refused_is_none_to_go_on_with_or_to_go_back_to(service: Gke, cloud: Cloud) -> None:
    before = cloud()["service"]
    done = service("roll-out", DAMAGED, code=2)
    assert f"the RayService is what it was before, and names {ONE}" in done.stderr
    assert cloud()["service"] == before
    service("roll-out", TWO)
    service("roll-out", DAMAGED, code=2)
    service("roll-back")
    assert answering(cloud()) == ONE


def test_roll_back_to_a_bundle_that_is_refused_is_undone_too(service: Gke, cloud: Cloud) -> None:
    before = cloud()["service"]
    before["metadata"]["annotations"]["caption-ray/previous-bundle"] = DAMAGED
    cloud(service=before)
    assert f"{DAMAGED} was refused" in service("roll-back", code=2).stderr
    assert cloud()["service"] == before


def test_bundle_that_only_does_not_answer_may_still_come(service: Gke, cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "curl").write_text("#!/bin/sh\nexit 22\n")
    assert f"captions.example.com does not answer with {TWO}" in service("roll-out", TWO, code=2).stderr
    assert answering(cloud()) == TWO


def test_refusal_undoes_nothing_of_others_and_says_what_it_cannot_undo(service: Gke, cloud: Cloud) -> None:
    cloud(meanwhile={"caption-ray/bundle": THREE})
    done = service("roll-out", DAMAGED, code=2)
    assert f"the RayService names {THREE} by now, so nothing is put back" in done.stderr
    cloud(meanwhile={})
    service("roll-out", TWO)
    named = json.loads(json.dumps(cloud()["service"]).replace(TWO, DAMAGED))  # as by one that was interrupted
    cloud(service=named)
    done = service("roll-out", DAMAGED, code=2)
    assert f"the RayService still names {DAMAGED}: `gcp/gke.sh roll-back` before all else" in done.stderr
    assert cloud()["service"] == named


def test_deploy_of_another_image_ends_when_that_answers(service: Gke, cloud: Cloud) -> None:
    service("deploy", ONE, TAG="def5678")
    assert cloud()["active"]["image"].endswith(":def5678")
    cloud(stuck=True)
    done = service("deploy", ONE, TAG="bad0000", code=2)
    assert "the new cluster does not become ready, and the old one goes on" in done.stderr
    assert cloud()["active"]["image"].endswith(":def5678")
    assert '"id":"0123456789ab' in service("status").stdout


def test_another_host_needs_another_certificate(service: Gke) -> None:
    said = "the certificate is for captions.example.com, not for HOST=other.example.com"
    assert said in service("up", HOST="other.example.com", code=2).stderr
    assert said in service("deploy", ONE, HOST="other.example.com", code=2).stderr


def test_new_key_is_good_at_once_and_the_one_before_until_the_next(service: Gke, cloud: Cloud) -> None:
    first = service("key").stdout.strip()
    service("new-key")
    second = service("key").stdout.strip()
    assert len(second) == 48
    assert second != first
    assert cloud()["active"]["keys"] == f"{second},{first}", "the workers that answer were started with both"
    assert '"id":"0123456789ab' in service("status").stdout
    name = cloud()["active"]["name"]
    service("deploy", ONE)  # the same keys are no reason for another cluster
    assert cloud()["active"]["name"] == name
    service("new-key")
    third = service("key").stdout.strip()
    assert cloud()["active"]["keys"] == f"{third},{second}"
    for key in (first, second, third):
        assert key not in str(cloud()["calls"])


def test_new_key_that_failed_is_ended_by_the_next_and_leaves_clients_their_key(service: Gke, cloud: Cloud) -> None:
    first = service("key").stdout.strip()
    cloud(stuck=True)
    said = service("new-key", code=2).stderr
    assert "the new cluster does not become ready, and the old one goes on" in said
    second = cloud()["keys"].partition(",")[0]
    service("new-key", code=2)
    assert cloud()["keys"] == f"{second},{first}", "the key that clients have is good still"
    assert cloud()["active"]["keys"] == first
    cloud(stuck=False)
    assert "no other is made" in service("new-key").stderr
    assert cloud()["active"]["keys"] == cloud()["keys"] == f"{second},{first}"
    service("new-key")
    assert cloud()["keys"].endswith(f",{second}")


def test_new_key_gives_the_workers_no_empty_secret(service: Gke, cloud: Cloud) -> None:
    before = cloud(keys="")["service"]
    assert "no key in the Secret caption-ray-api-keys; nothing is changed" in service("new-key", code=2).stderr
    assert (cloud()["keys"], cloud()["service"]) == ("", before)


def test_down_goes_on_where_the_namespace_does_not_go(service: Gke, cloud: Cloud) -> None:
    """KubeRay's own clusters go first, while the Job that deletes them from Redis may still start."""
    cloud(undeletable=["rayservice,raycluster"])
    assert "it goes with the cluster" in service("down").stderr
    deleted = [call[2] for call in cloud()["calls"] if call[:2] == ["kubectl", "delete"]]
    assert deleted == ["gateway", "rayservice,raycluster"]
    assert "container clusters caption-ray" not in cloud()["things"]
    cloud(undeletable=["gateway"], things=[*cloud()["things"], "container clusters caption-ray"])
    service("down", code=1)
    assert "container clusters caption-ray" in cloud()["things"], "its load balancer would outlive it"


def test_bundle_is_found_from_where_the_user_stands(tmp_path: Path) -> None:
    environment = {**os.environ, "PROJECT": "p", "HOST": "captions.example.com", "TAG": "abc1234"}

    def bundle_of(folder: str) -> str:
        command = [ROOT / "gcp" / "gke.sh", "upload", folder, "--dry-run"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.partition("--bundle ")[2].partition(" ")[0]

    assert bundle_of("runs/b") == f"{tmp_path}/runs/b"
    assert bundle_of("/runs/b") == "/runs/b"
    assert bundle_of("gs://runs/b") == "gs://runs/b"


@pytest.mark.parametrize("arguments", [("image",), ("deploy", ONE)])
def test_image_without_a_name_is_neither_made_nor_deployed(
    arguments: tuple[str, ...], service: Gke, cloud: Cloud, tmp_path: Path
) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexit 128\n")
    (tmp_path / "git").chmod(0o755)
    before = len(cloud()["calls"])
    assert "git tells no commit of this folder" in service(*arguments, code=2, TAG="").stderr
    assert len(cloud()["calls"]) == before
