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

Gke = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def gke(tmp_path: Path) -> Gke:
    for tool in ("gcloud", "kubectl", "helm", "curl"):
        script = tmp_path / tool
        script.write_text(f"#!{sys.executable}\n{Path(__file__).with_name('stand_in_cloud.py').read_text()}")
        script.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CLOUD": str(tmp_path / "cloud.json"),
        "PYTHON": sys.executable,
        **{"PROJECT": "p", "HOST": "captions.example.com", "TAG": "abc1234", "ANSWERS": "3"},
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [ROOT / "gcp" / "gke.sh", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_from_nothing_and_back_to_nothing(gke: Gke, tmp_path: Path) -> None:
    def cloud() -> dict[str, Any]:
        state: dict[str, Any] = json.loads((tmp_path / "cloud.json").read_text())
        return state

    def answering() -> str:
        config = yaml.safe_load(cloud()["service"]["spec"]["serveConfigV2"])
        bundle: str = config["applications"][0]["deployments"][1]["user_config"]["bundle"]
        return bundle

    gke("up")
    made = cloud()["things"]
    assert len(made) == 7
    gke("up")  # again: the stand-in refuses to make anything twice
    assert cloud()["things"] == made
    grants = [" ".join(call) for call in cloud()["calls"] if "add-iam-policy-binding" in call]
    account = "serviceAccount:123-compute@developer.gserviceaccount.com"
    for role in ("cloudbuild.builds.builder", "container.defaultNodeServiceAccount", "artifactregistry.reader"):
        assert any(f"--role=roles/{role} --member={account}" in grant for grant in grants), role
    assert grants[-1].endswith(
        "/projects/123/locations/global/workloadIdentityPools/p.svc.id.goog/namespace/caption-ray"
    )

    gke("deploy", ONE)
    key = cloud()["key"]
    assert len(key) == 48
    assert key not in str(cloud()["calls"])
    assert gke("key").stdout.strip() == key
    assert answering() == ONE
    gke("deploy", ONE)
    assert cloud()["key"] == key

    done = gke("roll-out", TWO)
    assert "3 answers in a row come from ba9876543210" in done.stderr
    assert answering() == TWO
    gke("roll-back")
    assert answering() == ONE
    assert '"id":"0123456789ab' in gke("status").stdout

    gke("down")
    assert cloud()["things"] == ["storage buckets gs://p-caption-ray"]
    gke("down", "--bundles")
    assert cloud()["things"] == []
    gke("down", "--bundles")  # again: there is nothing to delete
