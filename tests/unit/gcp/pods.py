"""The pods that the manifests ask for, and how many of them replicas take."""

from typing import Any

GIB = 1 << 30


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def groups_of(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"], **{g["groupName"]: g for g in cluster["workerGroupSpecs"]}}


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def capacity(group: dict[str, Any]) -> dict[str, float]:
    """Return what Ray has on one pod of a group, as its replicas ask for it."""
    limits = container_of(group)["resources"]["limits"]
    params = group["rayStartParams"]
    assert limits["memory"].endswith("Gi")
    assert int(params["num-cpus"]) <= int(limits["cpu"])
    assert params.get("num-gpus", "0") == limits.get("nvidia.com/gpu", "0")
    return {
        "num_cpus": int(params["num-cpus"]),
        "num_gpus": int(params.get("num-gpus", "0")),
        "memory": int(limits["memory"].removesuffix("Gi")) * GIB,
    }


def num_pods(replicas: list[dict[str, float]], pod: dict[str, float]) -> int:
    """Return how many pods replicas take, the largest first, each in the first pod with room for it."""
    pods: list[dict[str, float]] = []
    for replica in sorted(replicas, key=lambda r: -r["num_cpus"]):
        assert all(replica.get(name, 0) <= room for name, room in pod.items()), f"{replica} fits on no {pod}"
        for left in pods:
            if all(replica.get(name, 0) <= room for name, room in left.items()):
                break
        else:
            left = dict(pod)
            pods.append(left)
        for name in left:
            left[name] -= replica.get(name, 0)
    return len(pods)
