"""What the manifests say to each other, to the app, and to the machines: by arithmetic and by name."""

import json
import re
from typing import Any

import manifests
import pytest
import yaml
from pods import GIB, capacity, container_of, groups_of, num_pods, of_kind

from caption_ray.serve.middleware import KEYS_VARIABLE, ApiKeyMiddleware
from caption_ray.serve.schemas import Limits


def replicas_of(config: dict[str, Any], which: str) -> list[list[dict[str, float]]]:
    """Return each deployment's replicas at its `min_replicas` or `max_replicas`."""
    return [[d["ray_actor_options"]] * d["autoscaling_config"][which] for d in config["applications"][0]["deployments"]]


def test_serve_and_cluster_scale_to_the_same_size(ray_service: dict[str, Any]) -> None:
    config = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    groups = groups_of(ray_service)
    cpu, spot = groups["cpu"], groups["cpu-spot"]
    assert capacity(cpu) == capacity(spot)
    pod = capacity(cpu)
    ingresses, captioners = replicas_of(config, "max_replicas")
    at_most = cpu["maxReplicas"] + spot["maxReplicas"]
    assert num_pods([*ingresses, *captioners], pod) == 8
    # However they are placed: never two of a kind on a pod, and beside one there is room for one of the other.
    assert num_pods([ingresses[0], captioners[0]], pod) == 1
    assert max(len(ingresses), len(captioners)) == 8 <= at_most
    # At the smallest all are on machines that are not taken away, and there is one that may be lost.
    at_least = [replica for replicas in replicas_of(config, "min_replicas") for replica in replicas]
    assert num_pods(at_least, pod) == 2 <= cpu["minReplicas"]
    assert spot["minReplicas"] == 0
    for deployment in config["applications"][0]["deployments"]:
        assert deployment["autoscaling_config"]["min_replicas"] >= 2
        assert deployment["max_replicas_per_node"] == 1, "else both of the smallest number may be on one worker"
    assert captioners[0]["num_cpus"] == config["applications"][0]["deployments"][1]["user_config"]["num_threads"]


def test_with_gpus_too() -> None:
    documents = manifests.render("image", "gs://b/one", "captions.example.com", gpu=True)
    (service,) = of_kind(documents, "RayService")
    groups = groups_of(service)
    ingresses, captioners = replicas_of(yaml.safe_load(service["spec"]["serveConfigV2"]), "max_replicas")
    assert captioners[0]["num_gpus"] == 1
    machine = groups["gpu-l4"]["template"]["spec"]["nodeSelector"]
    assert machine == {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-gpu-driver-version": "latest",  # the default one may be too old for the image's CUDA
    }
    assert num_pods(captioners, capacity(groups["gpu-l4"])) == len(captioners) == groups["gpu-l4"]["maxReplicas"]
    assert num_pods(ingresses[:1], capacity(groups["cpu"])) == 1
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ingress, captioner = config["applications"][0]["deployments"]
    # Unlike on CPUs, there may be none for minutes: one GPU that waits is what most would pay for, not two.
    assert captioner["autoscaling_config"]["min_replicas"] == 1
    assert ingress["autoscaling_config"]["min_replicas"] == 2
    assert len(ingresses) <= groups["cpu"]["maxReplicas"], "one on a pod, wherever the captioners are"


def test_redis_is_reached_and_its_password_is_in_a_secret() -> None:
    documents = manifests.render("image", "gs://b/one", "captions.example.com", redis="10.0.0.3:6379")
    (service,), policies = of_kind(documents, "RayService"), of_kind(documents, "NetworkPolicy")
    (ray,) = (policy for policy in policies if policy["metadata"]["name"] == "ray")
    way_out = {"to": [{"ipBlock": {"cidr": "10.0.0.3/32"}}], "ports": [{"protocol": "TCP", "port": 6379}]}
    assert ray["spec"]["egress"][-1] == way_out
    options = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "10.0.0.3:6379"
    assert list(options["redisPassword"]) == ["valueFrom"]


def test_replica_that_fits_on_no_pod_is_found() -> None:
    with pytest.raises(AssertionError, match="fits on no"):
        num_pods([{"num_cpus": 4}], {"num_cpus": 3, "num_gpus": 0, "memory": 8 * GIB})
    assert num_pods([{"num_cpus": 2}] * 3 + [{"num_cpus": 1}] * 4, {"num_cpus": 3}) == 4


def test_head_does_no_work_and_workers_hold_no_right_over_kubernetes(ray_service: dict[str, Any]) -> None:
    groups = groups_of(ray_service)
    assert groups.pop("head")["rayStartParams"]["num-cpus"] == "0"
    for group in groups.values():
        assert group["template"]["spec"]["serviceAccountName"] == "caption-ray-worker"
        assert group["template"]["spec"]["automountServiceAccountToken"] is False
    assert ray_service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_every_container_is_bounded_confined_and_probed(ray_service: dict[str, Any]) -> None:
    for name, group in groups_of(ray_service).items():
        pod, container = group["template"]["spec"], container_of(group)
        resources = container["resources"]
        assert resources["requests"] == resources["limits"], name
        assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["limits"])
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        assert {"readinessProbe", "livenessProbe"} <= set(container)
    options = ray_service["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert set(options["resources"]["limits"]) == set(options["resources"]["requests"]) == {"cpu", "memory"}


def test_spot_workers_are_on_spot_machines_alone(ray_service: dict[str, Any]) -> None:
    groups = groups_of(ray_service)
    spot = {name for name, g in groups.items() if "gke-spot" in str(g["template"]["spec"].get("nodeSelector"))}
    assert spot == {"cpu-spot"}
    # They are asked for first, and where none comes, the others before a load has gone by.
    assert groups["cpu-spot"]["priority"] > max(
        g.get("priority", 0) for g in groups.values() if g != groups["cpu-spot"]
    )
    options = ray_service["spec"]["rayClusterConfig"]["autoscalerOptions"]
    variables = {variable["name"]: variable["value"] for variable in options["env"]}
    assert 300 <= int(variables["RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"]) <= 900


def test_load_balancer_waits_longer_than_the_service(
    documents: list[dict[str, Any]], ray_service: dict[str, Any]
) -> None:
    config = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    (policy,) = of_kind(documents, "GCPBackendPolicy")
    (health,) = of_kind(documents, "HealthCheckPolicy")
    assert config["http_options"]["host"] == "0.0.0.0"
    assert policy["spec"]["default"]["timeoutSec"] > config["http_options"]["request_timeout_s"]
    assert config["http_options"]["keep_alive_timeout_s"] > 600, "what Google's load balancers keep a connection for"
    draining_s = policy["spec"]["default"]["connectionDraining"]["drainingTimeoutSec"]
    assert config["http_options"]["request_timeout_s"] <= draining_s
    assert draining_s < ray_service["spec"]["rayClusterDeletionDelaySeconds"]
    assert health["spec"]["default"]["config"]["httpHealthCheck"]["requestPath"] == "/-/healthz"
    for document in (policy, health):
        assert document["spec"]["targetRef"]["name"] == f"{ray_service['metadata']['name']}-serve-svc"


def test_what_has_begun_is_answered_before_a_replica_or_a_worker_ends(
    documents: list[dict[str, Any]], ray_service: dict[str, Any]
) -> None:
    limits = Limits()
    (policy,) = of_kind(documents, "HealthCheckPolicy")
    check = policy["spec"]["default"]
    unhealthy_s = check["checkIntervalSec"] * check["unhealthyThreshold"]
    ingress, captioner = yaml.safe_load(ray_service["spec"]["serveConfigV2"])["applications"][0]["deployments"]
    assert ingress["name"] == "Ingress"
    assert ingress["graceful_shutdown_timeout_s"] >= limits.body_timeout_s + limits.deadline_s
    assert captioner["graceful_shutdown_timeout_s"] >= limits.deadline_s
    groups = groups_of(ray_service)
    del groups["head"]
    for group in groups.values():
        command, replicas_s, balancer_s = container_of(group)["lifecycle"]["preStop"]["exec"]["command"]
        assert f"/usr/local/bin/{command}\n" in (manifests.GCP.parent / "Dockerfile").read_text()
        assert int(replicas_s) >= ingress["graceful_shutdown_timeout_s"] >= captioner["graceful_shutdown_timeout_s"]
        assert unhealthy_s < int(balancer_s) <= 20, "with 5 s for replicas, all that a spot machine has"
        grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s >= int(replicas_s) + int(balancer_s) + 10


def test_nothing_but_the_serve_port_is_exposed(documents: list[dict[str, Any]], ray_service: dict[str, Any]) -> None:
    port = yaml.safe_load(ray_service["spec"]["serveConfigV2"])["http_options"]["port"]
    (route,) = (d for d in of_kind(documents, "HTTPRoute") if d["metadata"]["name"] == "captions")
    backends = [backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]
    assert backends == [{"name": "caption-ray-serve-svc", "port": port}]
    (health,) = of_kind(documents, "HealthCheckPolicy")
    assert health["spec"]["default"]["config"]["httpHealthCheck"]["port"] == port
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(documents, "NetworkPolicy")}
    assert policies["deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (from_outside,) = policies["load-balancer"]["ingress"]
    assert from_outside["ports"] == [{"protocol": "TCP", "port": port}]
    assert not of_kind(documents, "Service")
    paths = {match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]}
    assert paths == ApiKeyMiddleware.OPEN_ROUTES | {"/v1"}
    assert "/metrics" not in paths


def test_keys_come_from_a_secret(ray_service: dict[str, Any]) -> None:
    groups = groups_of(ray_service)
    del groups["head"]
    for group in groups.values():
        (keys,) = (v for v in container_of(group)["env"] if v["name"] == KEYS_VARIABLE)
        assert keys["valueFrom"] == {"secretKeyRef": {"name": "caption-ray-api-keys", "key": "keys"}}


def test_what_the_dashboard_draws_is_collected(documents: list[dict[str, Any]], ray_service: dict[str, Any]) -> None:
    (monitoring,) = of_kind(documents, "PodMonitoring")
    ((endpoint,), selector) = monitoring["spec"]["endpoints"], monitoring["spec"]["selector"]["matchLabels"]
    (policy,) = (d for d in of_kind(documents, "NetworkPolicy") if d["metadata"]["name"] == "metrics")
    (rule,) = policy["spec"]["ingress"]
    for group in groups_of(ray_service).values():
        assert selector.items() <= group["template"]["metadata"]["labels"].items()
        (port,) = (p["containerPort"] for p in container_of(group)["ports"] if p["name"] == endpoint["port"])
        assert rule["ports"] == [{"protocol": "TCP", "port": port}]
    (kept,) = endpoint["metricRelabeling"]
    dashboard = json.loads((manifests.GCP / "grafana-dashboard.json").read_text())
    (prefix,) = (v for v in dashboard["templating"]["list"] if v["name"] == "prefix")
    assert re.fullmatch(kept["regex"], f"{prefix['current']['value']}_requests_total")
    assert not re.fullmatch(kept["regex"], "ray_node_cpu_utilization")


def test_names_are_found_and_nothing_else_is_reached_by_name(documents: list[dict[str, Any]]) -> None:
    (ray,) = (d for d in of_kind(documents, "NetworkPolicy") if d["metadata"]["name"] == "ray")
    servers = {
        to.get("ipBlock", {}).get("cidr", "kube-system")
        for rule in ray["spec"]["egress"]
        for to in rule["to"]
        if {"protocol": "UDP", "port": 53} in rule.get("ports", [])
    }
    assert servers == {"kube-system", "169.254.20.10/32", "169.254.169.254/32"}, "kube-dns, its cache, Cloud DNS"


def test_policies_and_budgets_select_pods_that_there_are(
    documents: list[dict[str, Any]], ray_service: dict[str, Any]
) -> None:
    pods = [
        {**group["template"]["metadata"]["labels"], "ray.io/node-type": "head" if name == "head" else "worker"}
        for name, group in groups_of(ray_service).items()
    ]

    def num_selected(selector: dict[str, Any]) -> int:
        return sum(pod.items() >= selector.get("matchLabels", {}).items() for pod in pods)

    budgets, policies = of_kind(documents, "PodDisruptionBudget"), of_kind(documents, "NetworkPolicy")
    selected = {budget["metadata"]["name"]: num_selected(budget["spec"]["selector"]) for budget in budgets}
    assert selected == {"caption-ray-workers": 3, "caption-ray-head": 1}
    # Anything but a number that must stay needs the scale of the pods' owner, and a RayCluster has none.
    assert [budget["spec"].keys() for budget in budgets] == [{"minAvailable", "selector"}] * 2
    assert [budget["spec"]["minAvailable"] for budget in budgets] == [1, 1]
    assert groups_of(ray_service)["cpu"]["minReplicas"] > 1, "else no worker could ever be moved"
    selected = {policy["metadata"]["name"]: num_selected(policy["spec"]["podSelector"]) for policy in policies}
    assert selected == {"deny": 4, "ray": 4, "metrics": 4, "load-balancer": 3}
    accounts = {account["metadata"]["name"] for account in of_kind(documents, "ServiceAccount")}
    assert {g["template"]["spec"]["serviceAccountName"] for g in groups_of(ray_service).values()} == accounts
