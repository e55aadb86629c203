"""gcp/gke.sh: what it would run, and that Google's own client takes that for commands."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"PROJECT": "my-project", "HOST": "captions.example.com", "TAG": "abc1234"}
COMMANDS = (
    "up",
    "image",
    "image --gpu",
    "upload runs/quickstart/bundle",
    "deploy gs://my-project-caption-ray/bundles/quickstart-0123456789ab",
    "deploy gs://b/one-0123456789ab --gpu",
    "roll-out gs://b/two-0123456789ab",
    "roll-back",
    "status",
    "key",
    "new-key",
    "down",
    "down --bundles",
)


def gke(arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHON": sys.executable, **ENVIRONMENT, **environment}
    command = [ROOT / "gcp" / "gke.sh", *shlex.split(arguments)]
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


def dry(arguments: str) -> list[str]:
    """Return the lines that a command prints where it runs nothing."""
    done = gke(f"{arguments} --dry-run")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_shell_scripts_have_no_flaw_that_shellcheck_knows() -> None:
    scripts = [ROOT / "gcp" / "gke.sh", ROOT / "gcp" / "steps.sh"]  # the first of them reads waits.sh
    scripts.append(ROOT / "gcp" / "drain_worker.sh")
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_up_makes_everything_in_an_order_that_works() -> None:
    made = [line.split(" caption-ray")[0] for line in dry("up") if " create" in line and not line.startswith("#")]
    assert [line.partition("gs://")[0].strip() for line in made][:3] == [
        "gcloud artifacts repositories create",
        "gcloud storage buckets create",
        "gcloud container clusters create-auto",
    ]
    assert made[-4:] == [
        "gcloud certificate-manager dns-authorizations create",
        "gcloud certificate-manager certificates create",
        "gcloud certificate-manager maps create",
        "gcloud certificate-manager maps entries create",
    ]
    assert "--version 1.7.0" in next(line for line in dry("up") if line.startswith("helm"))


def test_down_deletes_what_up_made_and_bundles_only_when_told_to() -> None:
    def things(lines: list[str], verb: str) -> set[str]:
        commands = (line for line in lines if line.startswith("gcloud") and f" {verb}" in line)
        return {line.split(f" {verb}")[0] for line in commands}

    deleted = things(dry("down"), "delete")
    assert things(dry("up"), "create") - {"gcloud storage buckets"} == deleted
    assert not [line for line in dry("down") if line.startswith("gcloud storage rm")]
    assert "gcloud storage rm gs://my-project-caption-ray " in "\n".join(dry("down --bundles"))


def test_key_is_in_no_command_line() -> None:
    (line,) = (line for line in dry(COMMANDS[4]) if "create secret" in line)
    assert line == (
        "openssl rand -hex 24 | kubectl create secret generic caption-ray-api-keys --namespace=caption-ray "
        "--from-file=keys=/dev/stdin"
    )


def test_gpu_means_the_image_and_the_manifests_for_gpus() -> None:
    assert "caption-ray:abc1234-cuda" in dry("image --gpu")[0]
    assert "VARIANT=cuda" in dry("image --gpu")[0]
    (render,) = (line for line in dry(COMMANDS[5]) if "render" in line)
    assert "caption-ray:abc1234-cuda" in render
    assert "--gpu" in render


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ("", {}, "up, image, upload, deploy, roll-out, roll-back, status, key, new-key or down?"),
        ("upp", {}, "up, image, upload, deploy, roll-out, roll-back, status, key, new-key or down?"),
        ("upload", {}, "upload takes 1 argument(s), not 0"),
        ("up now", {}, "up takes 0 argument(s), not 1"),
        ("up --dryrun", {}, "no such option: --dryrun"),
        ("up --dry-run", {"PROJECT": ""}, "PROJECT: the project id"),
    ],
)
def test_wrong_use_runs_nothing_and_says_why(arguments: str, environment: dict[str, str], said: str) -> None:
    done = gke(arguments, PATH="/usr/bin:/bin", **environment)
    assert done.returncode != 0
    assert said in done.stderr
    assert done.stdout == ""


def test_google_s_own_client_takes_every_command(tmp_path: Path) -> None:
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed")
    lines = [line for command in COMMANDS for line in dry(command)]
    lines = [line.removeprefix("# unless this finds it: ").removeprefix("# if this finds it: ") for line in lines]
    commands = sorted({" ".join(shlex.split(line)) for line in lines if line.startswith("gcloud ")})
    assert len(commands) > 25
    typo = commands[0].replace("--project=", "--projcet=")

    def verdicts(commands: list[str]) -> dict[str, str | None]:
        file = tmp_path / "commands.json"
        file.write_text(json.dumps([{"command_string": command} for command in commands]))
        lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"]
        environment = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
        done = subprocess.run(lint, capture_output=True, text=True, check=True, env=environment)
        return {verdict["command_string"]: verdict["error_message"] for verdict in json.loads(done.stdout)}

    found = verdicts([*commands, typo])
    assert len(found) == len(commands) + 1
    assert [error for error in found.values() if error] == [found[typo]]
    assert "unrecognized arguments: --projcet" in (found[typo] or "")


@pytest.mark.parametrize("keys", ["1234567890e1", "089123456789", "0123456789ab", "y"])
def test_kubectl_itself_reads_in_the_manifests_what_python_wrote(keys: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    named = {"image": "i", "bundle": "gs://b/one-0123456789ab", "host": "captions.example.com", "keys": keys}
    render = [sys.executable, "gcp/manifests.py", "render", *(f"--{name}={value}" for name, value in named.items())]
    rendered = subprocess.run(render, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    read = ["kubectl", "label", "--local", "--filename=-", "--output=json", "read=yes"]  # asks no cluster
    done = subprocess.run(read, input=rendered.stdout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = list(yaml.safe_load_all(rendered.stdout))
    for document in expected:
        document["metadata"].setdefault("labels", {})["read"] = "yes"
    found, rest = [], done.stdout.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    assert found == expected


def test_cloud_build_passes_on_what_the_dockerfile_takes() -> None:
    build = yaml.safe_load((ROOT / "gcp" / "cloudbuild.yaml").read_text())
    (step,) = build["steps"]
    given = {word.split("=")[1] for word in step["args"] if word.startswith("--build-arg=")}
    taken = {
        line.split()[1].split("=")[0]
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("ARG ")
    }
    assert given == {"VARIANT", "CUDA_BUILD", "REVISION"} <= taken
    substitutions = next(word for word in shlex.split(dry("image")[0]) if word.startswith("--substitutions="))
    passed = {pair.split("=")[0] for pair in substitutions.removeprefix("--substitutions=").split(",")}
    assert passed == set(build["substitutions"])


@pytest.mark.parametrize("replica", ["ray::ServeReplica:captions:Ingress", None])
def test_a_worker_that_drains_waits_as_long_as_there_are_replicas(tmp_path: Path, replica: str | None) -> None:
    """With no processes in sight but these: a raylet, whose command line is long as Ray's is, and the replica."""
    asked = tmp_path / "asked"
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    ray.chmod(0o755)
    start = f"exec -a '{replica}' sleep 60" if replica else "sleep 60"
    script = f"""
        mount -t proc proc /proc
        long=$(printf 'x%.0s' $(seq 5000))
        (exec -a "raylet $long" bash -c 'sleep 60; true' -- --node_id=abc) &
        ({start}) &
        seen() {{ cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' '\\n' | grep -q "^$1"; }}
        until seen --node_id=abc && seen '{replica or "sleep"}'; do sleep 0.1; done
        date +%s.%N > {tmp_path}/started
        PATH={tmp_path}:$PATH bash {ROOT}/gcp/drain_worker.sh 4 1
    """
    command = ["unshare", "--fork", "--pid", "--mount", "--kill-child", "bash", "-c", script]
    if subprocess.run([*command[:-1], "true"], capture_output=True, check=False).returncode:
        pytest.skip("processes of one's own to see take root")
    subprocess.run(command, check=True, timeout=100)
    waited = time.time() - float((tmp_path / "started").read_text())
    assert "--node-id=abc" in asked.read_text()
    assert waited > 5 if replica else waited < 4
