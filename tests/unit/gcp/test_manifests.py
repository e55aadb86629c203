import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import manifests
import pytest
import yaml
from google_schema import GOOGLE_KINDS
from operator_rules import violations

KUBERNETES = "1.34"
ARGUMENTS = ("image", "gs://bucket/bundles/one", "captions.example.com")

Path_ = tuple[str | int, ...]
HEAD: Path_ = ("spec", "rayClusterConfig", "headGroupSpec")
WORKER: Path_ = ("spec", "rayClusterConfig", "workerGroupSpecs", 0)
CONTAINER: Path_ = ("template", "spec", "containers", 0)


def changed(document: dict[str, Any], path: Path_, value: object) -> dict[str, Any]:
    """Return a document with one value set, at a path; None deletes it."""
    document = copy.deepcopy(document)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


@pytest.fixture(scope="session")
def ray_schema() -> jsonschema.Draft202012Validator:
    folder = os.environ.get("CAPTION_RAY_SCHEMAS")
    if folder is None:
        pytest.skip("CAPTION_RAY_SCHEMAS names no folder with rayservice.v1.schema.json")
    return jsonschema.Draft202012Validator(json.loads((Path(folder) / "rayservice.v1.schema.json").read_text()))


def test_serve_config_is_the_one_of_the_clone() -> None:
    text = (manifests.GCP / "rayservice.yaml").read_text()
    assert text == manifests.embedded(), "they differ: run `python gcp/manifests.py embed`"
    assert text.count("serveConfigV2:") == 1


def test_what_differs_on_the_cluster_is_only_size_place_bundle_and_that_keys_are_a_must(
    ray_service: dict[str, Any],
) -> None:
    here = yaml.safe_load((manifests.GCP.parent / "serve_config.yaml").read_text())
    there = yaml.safe_load(ray_service["spec"]["serveConfigV2"])

    def leaves(value: object, path: str = "") -> dict[str, object]:
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return {k: v for key, inner in items for k, v in leaves(inner, f"{path}.{key}").items()}
        return {path: value}

    ours, theirs = leaves(here), leaves(there)
    differing = {path.rpartition(".")[2] for path in ours.keys() | theirs if ours.get(path) != theirs.get(path)}
    sizes = {"min_replicas", "max_replicas", "max_replicas_per_node", "num_cpus", "memory"}
    assert differing == {"host", "keep_alive_timeout_s", "bundle", "require_api_keys", *sizes}


@pytest.mark.parametrize("options", [{}, {"gpu": True}, {"redis": "10.0.0.3:6379"}])
def test_ray_service_has_the_schema_of_kuberay(
    ray_schema: jsonschema.Draft202012Validator, options: dict[str, Any]
) -> None:
    (service,) = (d for d in manifests.render(*ARGUMENTS, **options) if d["kind"] == "RayService")
    assert [f"{list(error.path)}: {error.message}" for error in ray_schema.iter_errors(service)] == []
    assert violations(service) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "serveConfig"), "x"),
        ((*WORKER, "minReplica"), 1),
        ((*WORKER, "maxReplicas"), None),
        ((*WORKER, "rayStartParams", "num-cpus"), 3),
        ((*WORKER, *CONTAINER, "imagePullPolcy"), "Always"),
        ((*WORKER, *CONTAINER, "resources", "limit"), {}),
        ((*HEAD, "template"), None),
        (("spec", "rayClusterConfig", "autoscalerOptions", "version"), "v3"),
    ],
)
def test_typo_in_the_ray_service_is_found(
    ray_schema: jsonschema.Draft202012Validator, ray_service: dict[str, Any], path: Path_, value: object
) -> None:
    assert list(ray_schema.iter_errors(changed(ray_service, path, value)))


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("metadata", "name"), "caption-ray-" * 5, "name: up to 47"),
        (("spec", "rayClusterConfig", "rayVersion"), "2.51.0", "tokens need"),
        (("spec", "rayClusterConfig", "enableInTreeAutoscaling"), False, "they do nothing"),
        ((*WORKER, "minReplicas"), 9, "cpu: minReplicas over maxReplicas"),
        ((*WORKER, "replicas"), 1, "cpu: replicas outside"),
        ((*WORKER, "groupName"), "cpu-spot", "names repeat"),
        ((*WORKER, "resources"), {"CPU": "3"}, "cpu: resources are in rayStartParams too"),
        ((*HEAD, "template", "spec", "restartPolicy"), "Always", "head: the autoscaler v2"),
        ((*HEAD, *CONTAINER, "env"), [{"name": "RAY_enable_autoscaler_v2", "value": "1"}], "exclude each other"),
        (("spec", "upgradeStrategy", "type"), "Rolling", "no such type"),
        (("spec", "upgradeStrategy", "type"), "NewClusterWithIncrementalUpgrade", "gatewayClassName are needed"),
    ],
)
def test_what_the_operator_would_refuse_is_found(
    ray_service: dict[str, Any], path: Path_, value: object, found: str
) -> None:
    assert violations(ray_service) == []
    assert any(found in violation for violation in violations(changed(ray_service, path, value)))


def test_kubernetes_own_kinds_have_its_schema(documents: list[dict[str, Any]], ray_service: dict[str, Any]) -> None:
    core = [d for d in documents if d["kind"] not in ("RayService", *GOOGLE_KINDS)]
    assert sorted({d["kind"] for d in core}) == ["Namespace", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"]
    cluster = ray_service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [{"apiVersion": "v1", "kind": "Pod", **group["template"]} for group in groups]
    for document in [*core, *pods]:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(changed(pods[0], ("spec", "restartPolcy"), "Never"), KUBERNETES, strict=True)


def test_google_s_kinds_have_their_fields(documents: list[dict[str, Any]]) -> None:
    found = [d for d in documents if d["kind"] in GOOGLE_KINDS]
    gateway = ["Gateway", "HTTPRoute", "HTTPRoute", "HealthCheckPolicy", "GCPBackendPolicy"]
    assert [d["kind"] for d in found] == ["PodMonitoring", *gateway]
    for document in found:
        jsonschema.validate(document, GOOGLE_KINDS[document["kind"]])
    for typo in (("spec", "default", "timeoutSecs"), ("spec", "targetRef", "kind")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed(found[-1], typo, 75), GOOGLE_KINDS["GCPBackendPolicy"])


def test_variable_that_nothing_fills_in_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("kind: Namespace\nmetadata: {name: '${NAME}'}\n")
    monkeypatch.setattr(manifests, "GCP", tmp_path)
    monkeypatch.setattr(manifests, "FILES", ("one.yaml",))
    with pytest.raises(ValueError, match=r"Namespace: nothing fills in 'NAME'; there are IMAGE, BUNDLE, HOST"):
        manifests.render(*ARGUMENTS)


def test_roll_out_changes_the_bundle_alone_and_roll_back_undoes_it(ray_service: dict[str, Any]) -> None:
    def applied(patch: dict[str, Any]) -> dict[str, Any]:
        after = changed(ray_service, ("spec", "serveConfigV2"), patch["spec"]["serveConfigV2"])
        after["metadata"]["annotations"] = {**live["metadata"]["annotations"], **patch["metadata"]["annotations"]}
        return after

    live = ray_service
    with pytest.raises(ValueError, match="no roll-out yet"):
        manifests.roll_back(live)
    live = applied(manifests.roll_out(live, "gs://bucket/bundles/two"))
    live = applied(manifests.roll_out(live, "gs://bucket/bundles/two"))  # repeated, it forgets nothing
    config = yaml.safe_load(live["spec"]["serveConfigV2"])
    assert config["applications"][0]["args"]["bundle"] == "gs://bucket/bundles/one", "or every replica would restart"
    assert config["applications"][0]["deployments"][1]["user_config"]["bundle"] == "gs://bucket/bundles/two"
    assert live["metadata"]["annotations"]["caption-ray/bundle"] == "gs://bucket/bundles/two"
    live = applied(manifests.roll_back(live))
    assert live["spec"]["serveConfigV2"] == ray_service["spec"]["serveConfigV2"]
    assert live["metadata"]["annotations"]["caption-ray/previous-bundle"] == "gs://bucket/bundles/two"


def test_put_back_undoes_a_patch_and_deletes_what_was_not_there(ray_service: dict[str, Any]) -> None:
    patch = manifests.put_back(ray_service)
    assert patch["spec"] == {"serveConfigV2": ray_service["spec"]["serveConfigV2"]}
    annotations = {"caption-ray/bundle": "gs://bucket/bundles/one", "caption-ray/previous-bundle": None}
    assert patch["metadata"] == {"annotations": annotations}
    before = changed(ray_service, ("metadata", "annotations", "caption-ray/previous-bundle"), "gs://bucket/bundles/nil")
    assert manifests.put_back(before)["metadata"]["annotations"] == before["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("keys", "written"),
    [
        ("1234567890e1", "'1234567890e1'"),
        ("089123456789", "'089123456789'"),
        ("123456789012", "'123456789012'"),
        ("y", "'y'"),
        ("0O17", "'0O17'"),
        ("+.5", "'+.5'"),
        ("0123456789ab", "0123456789ab"),
        ("12.34.56", "12.34.56"),
    ],
)
def test_string_that_go_would_take_for_something_else_is_quoted_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keys: str, written: str
) -> None:
    arguments = zip(("--image", "--bundle", "--host", "--keys"), (*ARGUMENTS, keys), strict=True)
    monkeypatch.setattr("sys.argv", ["manifests.py", "render", *(word for pair in arguments for word in pair)])
    monkeypatch.setattr("sys.stdin", io.StringIO())
    manifests.main()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "caption-ray/keys" in line]
    assert lines == [f"caption-ray/keys: {written}"] * 3


def test_deploy_remembers_the_bundle_that_answers_and_knows_no_other(ray_service: dict[str, Any]) -> None:
    def previous(live: dict[str, Any] | None, bundle: str) -> str | None:
        (service,) = (d for d in manifests.render("i", bundle, "h.example.com", live=live) if d["kind"] == "RayService")
        found: str | None = service["metadata"]["annotations"].get("caption-ray/previous-bundle")
        return found

    assert previous(None, "gs://bucket/bundles/two") is None
    assert previous(ray_service, "gs://bucket/bundles/two") == "gs://bucket/bundles/one"
    assert previous(ray_service, "gs://bucket/bundles/one") is None
    before = changed(ray_service, ("metadata", "annotations", "caption-ray/previous-bundle"), "gs://bucket/bundles/nil")
    assert previous(before, "gs://bucket/bundles/one") == "gs://bucket/bundles/nil"


def test_new_key_changes_every_worker_s_template_and_nothing_else(ray_service: dict[str, Any]) -> None:
    patch = manifests.new_key(ray_service, "0123456789ab")
    groups = patch["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert len(groups) == 3
    for group, before in zip(groups, ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"], strict=True):
        assert group["template"]["metadata"]["annotations"] == {"caption-ray/keys": "0123456789ab"}
        assert changed(group, ("template", "metadata", "annotations", "caption-ray/keys"), "") == before
