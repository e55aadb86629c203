"""Fills in the manifests beside it, and keeps the RayService's Serve config the same as serve_config.yaml.

`python gcp/manifests.py embed` writes the Serve config into gcp/rayservice.yaml. The others read the RayService on the
cluster, as JSON from stdin: `render` prints all manifests, filled in, and there need be none yet; `roll-out URI`,
`roll-back` and `new-key DIGEST` print a patch for it, and `put-back` one that undoes a patch: its stdin is the
RayService before that. gcp/gke.sh calls these.
"""

import argparse
import copy
import json
import re
import string
import sys
from pathlib import Path
from typing import Any

import yaml

GCP = Path(__file__).parent
FILES = ("cluster.yaml", "rayservice.yaml", "gateway.yaml")
_BEGIN, _END = "  # serve-config: begin\n", "  # serve-config: end\n"
_REDIS_SECRET = {"name": "caption-ray-redis", "key": "password"}
_BUNDLE, _PREVIOUS, _KEYS = "caption-ray/bundle", "caption-ray/previous-bundle", "caption-ray/keys"

# What differs on the cluster: a worker of 3 CPUs and 8 GiB holds one captioner and one ingress. Never two of a kind on
# one, so that the smallest number of each is on two workers, and one of these may be lost.
_GIB = 1 << 30
_ON_CLUSTER: dict[str, dict[str, Any]] = {
    "Ingress": {
        "autoscaling_config": {"min_replicas": 2, "max_replicas": 4},
        "max_replicas_per_node": 1,
        "ray_actor_options": {"num_cpus": 1, "memory": 1 * _GIB},
    },
    "CaptionerReplica": {
        "autoscaling_config": {"min_replicas": 2, "max_replicas": 8},
        "max_replicas_per_node": 1,
        "ray_actor_options": {"num_cpus": 2, "memory": 3 * _GIB},
        "user_config": {"bundle": "${BUNDLE}"},
    },
}
# One at the least, since a GPU that waits costs more than all else: where it is lost there are no captions until
# another machine is there, which takes minutes.
_ON_GPUS: dict[str, dict[str, Any]] = {
    "CaptionerReplica": {
        "autoscaling_config": {"min_replicas": 1, "max_replicas": 4},
        "ray_actor_options": {"num_cpus": 4, "num_gpus": 1},
    },
}


def serve_config(*, gpu: bool = False) -> dict[str, Any]:
    """Return serve_config.yaml as the cluster runs it; gpu: with a GPU for each captioner."""
    config: dict[str, Any] = yaml.safe_load((GCP.parent / "serve_config.yaml").read_text())
    # Google's load balancers use a connection again until it was idle for 600 s, so it is never Serve that closes one.
    config["http_options"] |= {"host": "0.0.0.0", "keep_alive_timeout_s": 620}
    (application,) = config["applications"]
    application["args"] = {**(application["args"] or {}), "bundle": "${BUNDLE}", "require_api_keys": True}
    for deployment in application["deployments"]:
        for changes in (_ON_CLUSTER, _ON_GPUS if gpu else {}):
            for option, value in changes.get(deployment["name"], {}).items():
                deployment[option] = {**deployment.get(option, {}), **value} if isinstance(value, dict) else value
    return config


def embedded() -> str:
    """Return gcp/rayservice.yaml with the Serve config as it should stand there."""
    text = (GCP / "rayservice.yaml").read_text()
    head, rest = text.split(_BEGIN)
    tail = rest.split(_END)[1]
    block = "".join(f"    {line}\n" for line in _dump(serve_config()).splitlines())
    return f"{head}{_BEGIN}  serveConfigV2: |\n{block}{_END}{tail}"


def render(
    image: str,
    bundle: str,
    host: str,
    *,
    keys: str = "",
    gpu: bool = False,
    redis: str | None = None,
    live: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return all manifests, filled in.

    keys: names the API keys, so that workers with others are replaced. redis: IP:PORT of a Redis to outlive a lost
    head, whose password is in the Secret caption-ray-redis. live: the RayService as it is on the cluster; its bundle is
    the one to roll back to. Raises ValueError where a manifest has a variable that nothing fills in.
    """
    documents = [document for file in FILES for document in yaml.safe_load_all((GCP / file).read_text())]
    found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    service = found.get(("RayService", "caption-ray"), {})
    if gpu:
        service["spec"]["serveConfigV2"] = _dump(serve_config(gpu=True))
    if live and (previous := _before(live, bundle)):
        service["metadata"]["annotations"][_PREVIOUS] = previous
    if redis:
        service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] = {
            "redisAddress": redis,
            "redisPassword": {"valueFrom": {"secretKeyRef": _REDIS_SECRET}},
        }
        address, _, port = redis.rpartition(":")
        found["NetworkPolicy", "ray"]["spec"]["egress"].append(
            {"to": [{"ipBlock": {"cidr": f"{address}/32"}}], "ports": [{"protocol": "TCP", "port": int(port)}]}
        )
    values = {"IMAGE": image, "BUNDLE": bundle, "HOST": host, "KEYS": keys}
    return [_filled(document, values, document["kind"]) for document in documents]


def roll_out(live: dict[str, Any], bundle: str) -> dict[str, Any]:
    """Return a patch that has the service answer with another bundle. live: the RayService as it is on the cluster."""
    config = yaml.safe_load(live["spec"]["serveConfigV2"])
    _captioner(config)["user_config"]["bundle"] = bundle
    annotations = {_BUNDLE: bundle}
    if previous := _before(live, bundle):
        annotations[_PREVIOUS] = previous
    return {"metadata": {"annotations": annotations}, "spec": {"serveConfigV2": _dump(config)}}


def roll_back(live: dict[str, Any]) -> dict[str, Any]:
    """Return a patch that has the service answer with the bundle before the last roll-out. Raises ValueError."""
    previous = live["metadata"].get("annotations", {}).get(_PREVIOUS)
    if previous is None:
        raise ValueError("there was no roll-out yet, so there is nothing to roll back; see `gcp/gke.sh roll-out`")
    return roll_out(live, previous)


def put_back(before: dict[str, Any]) -> dict[str, Any]:
    """Return a patch that undoes a roll-out or a roll-back. before: the RayService as it was on the cluster."""
    annotations = before["metadata"].get("annotations", {})
    # None becomes null, with which a patch deletes what was not there.
    undone = {name: annotations.get(name) for name in (_BUNDLE, _PREVIOUS)}
    return {"metadata": {"annotations": undone}, "spec": {"serveConfigV2": before["spec"]["serveConfigV2"]}}


def new_key(live: dict[str, Any], keys: str) -> dict[str, Any]:
    """Return a patch that has workers with other API keys replaced, by a second cluster."""
    groups = copy.deepcopy(live["spec"]["rayClusterConfig"]["workerGroupSpecs"])  # a patch replaces a list whole
    for group in groups:
        group["template"]["metadata"]["annotations"][_KEYS] = keys
    return {"spec": {"rayClusterConfig": {"workerGroupSpecs": groups}}}


def _captioner(config: dict[str, Any]) -> dict[str, Any]:
    (captioner,) = (d for d in config["applications"][0]["deployments"] if d["name"] == "CaptionerReplica")
    assert isinstance(captioner, dict)
    return captioner


def _before(live: dict[str, Any], bundle: str) -> str | None:
    """Return which bundle to go back to from this one. What is repeated changes nothing about that."""
    current: str = _captioner(yaml.safe_load(live["spec"]["serveConfigV2"]))["user_config"]["bundle"]
    return current if current != bundle else live["metadata"].get("annotations", {}).get(_PREVIOUS)


def _dump(document: object) -> str:
    text: str = yaml.dump(document, Dumper=_Plain, sort_keys=False, width=110)
    return text


class _Plain(yaml.SafeDumper):
    """Writes everything out, since kubectl's reader has no `<<`, and quotes what is a string to Python alone."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


# Without quotes 1234567890e1, 089, 0o17 and y are strings to PyYAML, and none to kubectl and to KubeRay's operator.
_NO_STRING_IN_GO = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0[bBoO][0-7_]+|[0-9_]*\.?[0-9_]*([eE][-+]?[0-9_]+)?)$|[yYnN]$")
_Plain.add_implicit_resolver("tag:yaml.org,2002:float", _NO_STRING_IN_GO, list("-+.0123456789yYnN"))


def _filled(value: Any, values: dict[str, str], kind: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, values, kind) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values, kind) for inner in value]
    if isinstance(value, str):
        try:
            return string.Template(value).substitute(values)
        except KeyError as error:
            raise ValueError(f"{kind}: nothing fills in {error}; there are {', '.join(values)}") from error
    return value


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("embed")
    rendering = commands.add_parser("render")
    for name in ("--image", "--bundle", "--host"):
        rendering.add_argument(name, required=True)
    rendering.add_argument("--gpu", action="store_true")
    rendering.add_argument("--keys", default="")
    rendering.add_argument("--redis")
    commands.add_parser("roll-out").add_argument("bundle")
    commands.add_parser("new-key").add_argument("keys")
    commands.add_parser("roll-back")
    commands.add_parser("put-back")
    asked = parser.parse_args()
    if asked.command == "embed":
        (GCP / "rayservice.yaml").write_text(embedded())
    elif asked.command == "render":
        live = None if sys.stdin.isatty() else json.loads(sys.stdin.read().strip() or "null")
        options = {"keys": asked.keys, "gpu": asked.gpu, "redis": asked.redis, "live": live}
        documents = render(asked.image, asked.bundle, asked.host, **options)
        yaml.dump_all(documents, sys.stdout, Dumper=_Plain, sort_keys=False)
    else:
        live = json.load(sys.stdin)
        patches = {
            "roll-out": lambda: roll_out(live, asked.bundle),
            "roll-back": lambda: roll_back(live),
            "put-back": lambda: put_back(live),
            "new-key": lambda: new_key(live, asked.keys),
        }
        try:
            patch = patches[asked.command]()
        except ValueError as error:
            sys.exit(str(error))
        sys.stdout.write(json.dumps(patch) + "\n")


if __name__ == "__main__":
    main()
