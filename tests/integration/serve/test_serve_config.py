import asyncio
import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private import constants
from strict import problems

from caption_ray.errors import BundleError, UsageError
from caption_ray.serve import deployment
from caption_ray.serve.captioner import CaptionerReplica
from caption_ray.serve.deployment import ServeArguments, build_app, find_bundle
from caption_ray.serve.ingress import find_api_keys
from caption_ray.serve.schemas import Limits

ROOT = Path(__file__).parents[3]
CONFIG = yaml.safe_load((ROOT / "serve_config.yaml").read_text())

Path_ = tuple[str | int, ...]
APPLICATION: Path_ = ("applications", 0)
INGRESS: Path_ = (*APPLICATION, "deployments", 0)
CAPTIONER: Path_ = (*APPLICATION, "deployments", 1)


def changed(path: Path_, value: object) -> dict[str, Any]:
    """Return the config with one value set, at a path."""
    config = copy.deepcopy(CONFIG)
    place: Any = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return config


def test_config_has_no_key_that_ray_ignores(tiny_bundle: Path) -> None:
    assert problems(CONFIG, str(tiny_bundle)) == []


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("http_optionz",), {}, "config: unknown key 'http_optionz'"),
        (("http_options", "prot"), 1, "config.http_options: unknown key 'prot'"),
        (("logging_config", "encodng"), "JSON", "config.logging_config: unknown key 'encodng'"),
        ((*APPLICATION, "rout_prefix"), "/", "config.applications[0]: unknown key 'rout_prefix'"),
        ((*INGRESS, "max_ongoing_request"), 1, "config.applications[0].deployments[0]: unknown key"),
        ((*INGRESS, "autoscaling_config", "min_replica"), 1, "deployments[0].autoscaling_config: unknown key"),
        ((*INGRESS, "backpressure_config", "retry_after"), 1, "backpressure_config: unknown key 'retry_after'"),
        ((*INGRESS, "ray_actor_options", "num_cpu"), 1, "ray_actor_options: unknown key 'num_cpu'"),
        ((*CAPTIONER, "ray_actor_options", "runtime_env"), {"env_var": {}}, "runtime_env: unknown key 'env_var'"),
        ((*CAPTIONER, "user_config", "max_batchsize"), 1, "CaptionerReplica.user_config.max_batchsize: Extra inputs"),
        ((*CAPTIONER, "user_config", "max_batch_size"), 0, "user_config.max_batch_size: Input should be greater"),
        ((*APPLICATION, "args", "bundel"), "x", "captions.args.bundel: Extra inputs"),
        ((*APPLICATION, "args", "limits"), {"max_byte": 1}, "captions.args.limits.max_byte: Extra inputs"),
        ((*APPLICATION, "import_path"), "caption_ray.serve.deployment:bild_app", "captions.import_path: module"),
        ((*APPLICATION, "import_path"), "caption_ray.serve.deploy:build_app", "captions.import_path: No module"),
        (
            (*INGRESS, "name"),
            "Ingres",
            "captions.Ingres: no such deployment; there are ['CaptionerReplica', 'Ingress']",
        ),
        ((*INGRESS, "user_config"), {}, "captions.Ingress: takes no user_config"),
        ((*CAPTIONER, "autoscaling_config", "min_replicas"), 9, "autoscaling.: Value error, max_replicas (2)"),
        ((*CAPTIONER, "max_queued_requests"), "many", "max_queued_requests: Input should be a valid integer"),
    ],
)
def test_typo_is_found(path: Path_, value: object, found: str, tiny_bundle: Path) -> None:
    wrong = problems(changed(path, value), str(tiny_bundle))
    assert any(found in problem for problem in wrong), wrong


def test_environment_of_the_replicas_is_one_that_serve_reads() -> None:
    for name in CONFIG["applications"][0]["runtime_env"]["env_vars"]:
        assert hasattr(constants, name)


def test_limits_are_in_the_order_in_which_they_must_be_hit() -> None:
    (application,) = CONFIG["applications"]
    ingress, captioner = application["deployments"]
    limits, user_config = Limits(), captioner["user_config"]
    # A whole batch waits while another computes, and a third fills.
    assert captioner["max_ongoing_requests"] >= 3 * user_config["max_batch_size"]
    # The app's own 503 comes before Serve's, whose body is not in our form.
    taken = captioner["autoscaling_config"]["max_replicas"] * captioner["max_ongoing_requests"]
    assert ingress["max_ongoing_requests"] > taken + captioner["max_queued_requests"]
    assert ingress["backpressure_config"]["retry_after_s"] == limits.retry_after_s
    assert CONFIG["http_options"]["request_timeout_s"] > limits.body_timeout_s + limits.deadline_s
    assert CONFIG["http_options"]["host"] == "127.0.0.1"


def test_config_fits_two_cpus_even_scaled_up() -> None:
    cpus = [
        deployment["autoscaling_config"]["max_replicas"] * deployment["ray_actor_options"]["num_cpus"]
        for deployment in CONFIG["applications"][0]["deployments"]
    ]
    assert sum(cpus) <= 2


def test_builder_refuses_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent: no manifest\.json: not a bundle"):
        build_app(ServeArguments(bundle=str(tmp_path / "absent")))


def test_ingress_that_misses_its_keys_does_not_open_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTION_RAY_API_KEYS", raising=False)
    assert find_api_keys(expected=False) == []
    with pytest.raises(UsageError, match=r"an ingress finds no CAPTION_RAY_API_KEYS; .*before `ray start`"):
        find_api_keys(expected=True)
    monkeypatch.setenv("CAPTION_RAY_API_KEYS", "a,b")
    assert find_api_keys(expected=True) == ["a", "b"]


@pytest.mark.parametrize(("keys", "asked", "expected"), [(None, False, False), ("a", False, True), (None, True, True)])
def test_keys_are_expected_where_there_are_some_or_some_are_required(
    keys: str | None, asked: bool, expected: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAPTION_RAY_API_KEYS", raising=False)
    if keys:
        monkeypatch.setenv("CAPTION_RAY_API_KEYS", keys)
    application = build_app(ServeArguments(bundle=str(tiny_bundle), require_api_keys=asked))
    assert application._bound_deployment.init_args[2] is expected


def test_bundle_is_asked_for_by_args_then_environment_then_quick_start(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAPTION_RAY_BUNDLE", raising=False)
    monkeypatch.setattr(deployment, "_QUICKSTART_BUNDLE", tmp_path / "runs" / "bundle")
    with pytest.raises(BundleError, match=r"runs/bundle: there is no bundle yet; .*`python jobs/quickstart.py`"):
        find_bundle(None)
    # The captioner's user_config may name one all the same; where it does not, its replica says that there is none.
    (captioner, *_) = build_app(ServeArguments())._bound_deployment.init_args
    replica = CaptionerReplica.func_or_class(*captioner._bound_deployment.init_args)
    with pytest.raises(BundleError, match=r"runs/bundle: there is no bundle yet; .*`python jobs/quickstart.py`"):
        asyncio.run(replica.reconfigure({}))
    asyncio.run(replica.reconfigure({"bundle": str(tiny_bundle)}))
    assert asyncio.run(replica.model()).location == str(tiny_bundle)
    monkeypatch.setattr(deployment, "_QUICKSTART_BUNDLE", tiny_bundle)
    assert find_bundle(None) == str(tiny_bundle)
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path))
    with pytest.raises(BundleError, match="not a bundle"):
        find_bundle(None)
    assert find_bundle(str(tiny_bundle)) == str(tiny_bundle)


def test_bundle_that_was_moved_is_known_by_its_new_place(tiny_bundle: Path, tmp_path: Path) -> None:
    """A replica that starts later asks the others where theirs is."""
    moved = shutil.copytree(tiny_bundle, tmp_path / "moved")
    spoilt = shutil.copytree(tiny_bundle, tmp_path / "spoilt")
    (spoilt / "model.safetensors").write_bytes(b"")

    async def swap() -> list[str]:
        replica = CaptionerReplica.func_or_class(str(tiny_bundle))
        await replica.reconfigure({})
        before = await replica.model()
        await replica.reconfigure({"bundle": str(moved)})
        await replica._swap
        after = await replica.model()
        assert (after.id, after.loaded_at, after.refused) == (before.id, before.loaded_at, None)
        await replica.reconfigure({"bundle": str(spoilt)})
        await replica._swap
        last = await replica.model()
        assert "spoilt" in str(last.refused)
        return [before.location, after.location, last.location]

    assert asyncio.run(swap()) == [str(tiny_bundle), str(moved), str(moved)]
