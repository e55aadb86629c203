"""Stands in for gcloud, kubectl, helm and curl, whichever it is called as: a cloud in a JSON file, $CLOUD.

It refuses to make what there is, and to delete what there is not, as the real ones do.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

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
            if verb.startswith("create"):
                if is_there:
                    return 1
                cloud["things"].append(thing)
            elif not is_there:
                return 1
            elif verb == "delete":
                cloud["things"].remove(thing)
    return 0


def kubectl(cloud: dict[str, Any], words: list[str]) -> int:
    if words[:2] == ["get", "secret"]:
        if "key" not in cloud:
            return 1
        if any("go-template" in word for word in words):
            say(cloud["key"])
    elif words[:2] == ["create", "secret"]:
        cloud["key"] = sys.stdin.read().strip()
    elif words[0] == "apply" and "--filename=-" in words:
        documents = {document["kind"]: document for document in yaml.safe_load_all(sys.stdin)}
        cloud["service"] = documents["RayService"]
    elif words[:2] == ["get", "rayservice"]:
        if "--output=json" in words:
            say(json.dumps(cloud["service"]))
        elif "--output=jsonpath={.metadata.annotations.caption-ray/bundle}" in words:
            say(cloud["service"]["metadata"]["annotations"]["caption-ray/bundle"])
    elif words[0] == "patch":
        patch, service = json.load(sys.stdin), cloud["service"]
        service["metadata"]["annotations"] |= patch["metadata"]["annotations"]
        service["spec"] |= patch["spec"]
    return 0


def curl(cloud: dict[str, Any], words: list[str]) -> int:
    asked = sys.stdin.read()
    assert words[-2:] == ["--config", "-"], words
    if 'url = "https://captions.example.com/v1/model"' not in asked or f'"X-API-Key: {cloud["key"]}"' not in asked:
        return 22
    config = yaml.safe_load(cloud["service"]["spec"]["serveConfigV2"])
    bundle = config["applications"][0]["deployments"][1]["user_config"]["bundle"]
    say(json.dumps({"id": bundle.rpartition("-")[2] + "0" * 52}, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
