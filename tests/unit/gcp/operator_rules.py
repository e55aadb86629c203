"""What KubeRay's operator (v1.7) refuses or fails on beyond its schema: from its validation.go, in our own words."""

import re
from collections.abc import Iterator
from typing import Any


def violations(service: dict[str, Any]) -> list[str]:
    """Return the rules that a RayService breaks."""
    return list(_violations(service))


def _violations(service: dict[str, Any]) -> Iterator[str]:
    name, spec = service["metadata"]["name"], service["spec"]
    cluster = spec["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "name: up to 47 letters, digits and dashes, a letter first"
    version = cluster.get("rayVersion", "0")
    if cluster.get("authOptions", {}).get("mode") == "token" and tuple(map(int, version.split(".")[:2])) < (2, 52):
        yield "authOptions: tokens need rayVersion 2.52"
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "authOptions: enableK8sTokenAuth is not for a RayService"
    options = cluster.get("autoscalerOptions", {})
    if options and not cluster.get("enableInTreeAutoscaling"):
        yield "autoscalerOptions: without enableInTreeAutoscaling they do nothing"
    names = [group.get("groupName") for group in groups[1:]]
    if len(set(names)) < len(names):
        yield "workerGroupSpecs: names repeat"
    for group in groups:
        place = group.get("groupName", "head")
        if group.get("minReplicas", 0) > group.get("maxReplicas", 1):
            yield f"{place}: minReplicas over maxReplicas"
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 1):
            yield f"{place}: replicas outside of minReplicas and maxReplicas"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"]):
            yield f"{place}: resources are in rayStartParams too"
        pod = group["template"]["spec"]
        if options.get("version") == "v2" and pod.get("restartPolicy", "Never") != "Never":
            yield f"{place}: the autoscaler v2 wants restartPolicy Never"
        environment = {variable["name"] for variable in pod["containers"][0].get("env", [])}
        if options.get("version") == "v2" and "RAY_enable_autoscaler_v2" in environment:
            yield f"{place}: RAY_enable_autoscaler_v2 and autoscalerOptions.version exclude each other"
    annotations = service["metadata"].get("annotations", {})
    if cluster.get("gcsFaultToleranceOptions") and "ray.io/ft-enabled" in annotations:
        yield "gcsFaultToleranceOptions: the annotation ray.io/ft-enabled excludes it"
    upgrade = spec.get("upgradeStrategy", {})
    if upgrade.get("type", "NewCluster") not in ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"):
        yield "upgradeStrategy: no such type"
    if upgrade.get("type") == "NewClusterWithIncrementalUpgrade":
        step = upgrade.get("clusterUpgradeOptions", {})
        if not cluster.get("enableInTreeAutoscaling"):
            yield "upgradeStrategy: incremental upgrades need enableInTreeAutoscaling"
        if not 0 <= step.get("stepSizePercent", -1) <= step.get("maxSurgePercent", 100) <= 100:
            yield "upgradeStrategy: stepSizePercent is from 0 to maxSurgePercent, which is at most 100"
        if step.get("intervalSeconds", 0) <= 0 or not step.get("gatewayClassName"):
            yield "upgradeStrategy: intervalSeconds and gatewayClassName are needed"
