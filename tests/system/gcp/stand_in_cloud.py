"""Stands in for gcloud, kubectl, helm and curl, whichever it is called as: a cloud in a JSON file, $CLOUD.

It refuses to make what there is, and to delete what there is not, as the real ones do.
"""

import json
import os
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

FILE = Path(os.environ["CLOUD"])


def main() -> int:
    tool, words = Path(sys.argv[0]).name, sys.argv[1:]
    cloud: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"things": [], "calls": []}
    cloud["calls"].append([tool, *words])
    code = {"gcloud": gcloud, "kubectl": kubectl, "curl": curl, "helm": lambda cloud, words: 0}[tool](cloud, words)
    FILE.write_text(json.dumps(cloud))
    return code


def say(line: object) -> None:
    sys.stdout.write(f"{line}\n")


def absent(message: str) -> int:
    sys.stderr.write(f"ERROR: {message}\n")
    return 1


def gcloud(cloud: dict[str, Any], words: list[str]) -> int:
    plain = [word for word in words if not word.startswith("-")]
    if plain[:2] == ["projects", "describe"]:
        say(123)
        return 0
    if plain[:2] == ["storage", "rm"]:
        plain = ["storage", "buckets", "delete", plain[2]]
    for verb in ("describe", "create", "create-auto", "delete"):
        if verb in plain:
            place = plain.index(verb)
            thing = " ".join([*plain[:place], plain[place + 1]])
            is_there = thing in cloud["things"]
            if verb == "describe" and "trouble" in cloud:
                return absent(cloud["trouble"])
            if verb.startswith("create"):
                if is_there:
                    return 1
                cloud["things"].append(thing)
                if "certificates" in plain:
                    domain = next(word.partition("=")[2] for word in words if word.startswith("--domains="))
                    cloud["certificate"] = {"domain": domain, "state": "PROVISIONING"}
            elif not is_there:
                return absent("(gcloud) NOT_FOUND: Requested entity was not found.")
            elif verb == "delete":
                cloud["things"].remove(thing)
    if words[-1].startswith("--format=value(managed."):
        certificate = cloud["certificate"]
        say(certificate["state" if "state" in words[-1] else "domain"])
        if "state" in words[-1]:
            certificate["state"] = "ACTIVE"  # time goes by
    return 0


def kubectl(cloud: dict[str, Any], words: list[str]) -> int:
    output = next((word.partition("=")[2] for word in words if word.startswith("--output=")), "")
    if words[:2] == ["get", "secret"]:
        if "keys" not in cloud:
            return absent('from server (NotFound): secrets "caption-ray-api-keys" not found')
        if output.startswith("go-template"):
            say(cloud["keys"])
        elif output:
            say(b64encode(cloud["keys"].encode()).decode())
    elif words[:2] == ["create", "secret"]:
        if "namespace" not in cloud:
            return 1
        cloud["keys"] = sys.stdin.read().strip()
    elif words[:2] == ["patch", "secret"]:
        cloud["keys"] = json.load(sys.stdin)["stringData"]["keys"]
    elif words[:2] == ["get", "namespace"]:
        if "namespace" not in cloud:
            return absent('from server (NotFound): namespaces "caption-ray" not found')
    elif words[:2] == ["apply", "--filename=gcp/cluster.yaml"]:
        cloud["namespace"] = words[1]
    elif words[0] == "apply" and "--filename=-" in words:
        import yaml  # here, because most calls have no need of it, and there are hundreds

        documents = {document["kind"]: document for document in yaml.safe_load_all(sys.stdin)}
        before = cloud.get("service", {}).get("metadata", {}).get("annotations", {})
        cloud["service"] = documents["RayService"]
        # What kubectl patch wrote stays, where what is applied says nothing about it.
        cloud["service"]["metadata"]["annotations"] = before | cloud["service"]["metadata"]["annotations"]
        start_cluster(cloud)
    elif words[:2] == ["get", "rayservice"]:
        if "service" not in cloud:
            return 0 if "--ignore-not-found" in words else 1
        say(json.dumps(cloud["service"]) if output == "json" else read(cloud, output))
    elif words[:2] == ["get", "raycluster"]:
        if words[2] != cloud["active"]["name"]:
            return 1
        annotations = cloud["active"]["config"]["workerGroupSpecs"][0]["template"]["metadata"]["annotations"]
        say(annotations["caption-ray/keys"] if "annotations" in output else cloud["active"]["image"])
    elif words[:2] == ["get", "pods"]:
        say("pod/one\npod/two")
    elif words[:2] == ["patch", "rayservice"]:
        patch, service = json.load(sys.stdin), cloud["service"]
        annotations = service["metadata"]["annotations"] | patch.get("metadata", {}).get("annotations", {})
        service["metadata"]["annotations"] = {k: v for k, v in annotations.items() if v is not None}
        service["spec"] |= {k: v for k, v in patch["spec"].items() if k != "rayClusterConfig"}
        service["spec"]["rayClusterConfig"] |= patch["spec"].get("rayClusterConfig", {})
        start_cluster(cloud)
    elif words[0] == "delete":
        return "--timeout=10m" not in words or words[1] in cloud.get("undeletable", ())
    elif words[0] == "wait":
        return wait(cloud, next(word.partition("=")[2] for word in words if word.startswith("--for=")))
    return 0


def start_cluster(cloud: dict[str, Any]) -> None:
    """As the operator does where a cluster would be another: one beside the one that answers, until it is ready."""
    config = cloud["service"]["spec"]["rayClusterConfig"]
    cloud["generation"] = cloud.get("generation", 0) + 1
    if config == cloud.get("active", {}).get("config"):
        return
    image = config["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    cluster = {"name": f"cluster-{cloud['generation']}", "image": image, "config": config, "keys": cloud["keys"]}
    cloud["pending" if "active" in cloud else "active"] = cluster


def wait(cloud: dict[str, Any], condition: str) -> int:
    """Time goes by: the operator sees what was applied, and a cluster that was started is ready, unless "stuck"."""
    if condition.startswith("jsonpath="):
        return 0 if condition == f"jsonpath={{.status.observedGeneration}}={cloud['generation']}" else 1
    if condition == "condition=UpgradeInProgress=False" and "pending" in cloud:
        if cloud.get("stuck"):
            return 1
        cloud["active"] = cloud.pop("pending")
    return 0


def read(cloud: dict[str, Any], output: str) -> object:
    return {
        "jsonpath={.metadata.annotations.caption-ray/bundle}": cloud["service"]["metadata"]["annotations"][
            "caption-ray/bundle"
        ],
        "jsonpath={.metadata.generation}": cloud["generation"],
        "jsonpath={.status.activeServiceStatus.rayClusterName}": cloud["active"]["name"],
    }[output]


def curl(cloud: dict[str, Any], words: list[str]) -> int:
    """Answer from the bundle that was asked for, but for one that is "damaged": that is refused."""
    asked = sys.stdin.read()
    assert words[-2:] == ["--config", "-"], words
    keys = cloud["active"]["keys"].split(",")
    if 'url = "https://captions.example.com/v1/model"' not in asked:
        return 22
    if not any(f'"X-API-Key: {key}"' in asked for key in keys) or cloud["certificate"]["state"] != "ACTIVE":
        return 22
    user_config = cloud["service"]["spec"]["serveConfigV2"].partition(" user_config:")[2]
    bundle = user_config.partition(" bundle: ")[2].split()[0]
    refused = f"{bundle}/model.safetensors: not what manifest.json says" if "damaged" in bundle else None
    digest = "0" * 12 if refused else bundle.rpartition("-")[2]
    cloud["service"]["metadata"]["annotations"] |= cloud.get("meanwhile", {})  # what others do to it
    say(json.dumps({"id": digest + "0" * 52, "refused": refused}, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
