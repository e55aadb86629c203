"""What gcp/ says to Ray: the Serve config by the same rules as that of the clone, and the headers that Serve obeys."""

import sys
from pathlib import Path

import yaml
from ray.serve._private import constants
from strict import problems

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "gcp"))


def test_embedded_config_has_no_key_that_ray_ignores(tiny_bundle: Path) -> None:
    import manifests

    for gpu in (False, True):
        service = next(
            d for d in manifests.render("i", "gs://b/x", "h.example.com", gpu=gpu) if d["kind"] == "RayService"
        )
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        assert problems(config, str(tiny_bundle)) == []
        del config["applications"][0]["deployments"][1]["user_config"]["max_batch_size"]
        config["applications"][0]["deployments"][1]["user_config"]["max_batchsize"] = 1
        assert len(problems(config, str(tiny_bundle))) == 1


def test_gateway_takes_away_every_header_that_serve_obeys() -> None:
    import manifests

    routes = (d for d in manifests.render("i", "gs://b/x", "h.example.com") if d["kind"] == "HTTPRoute")
    (rule,) = next(route for route in routes if route["metadata"]["name"] == "captions")["spec"]["rules"]
    (header_filter,) = rule["filters"]
    assert header_filter["type"] == "RequestHeaderModifier"
    obeyed = {
        constants.SERVE_HTTP_REQUEST_ID_HEADER,
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        *(constants.SERVE_MULTIPLEXED_MODEL_ID.replace("_", sign) for sign in "-_"),
        *(constants.SERVE_SESSION_ID.replace("-", sign) for sign in "-_"),
        "traceparent",  # read for tracing, and answered 500 where its bytes are no text
    }
    assert set(header_filter["requestHeaderModifier"]["remove"]) == obeyed


def test_autoscaler_knows_the_variable_that_ends_its_wait_for_a_spot_machine() -> None:
    import manifests
    from ray.autoscaler.v2.instance_manager import config

    service = next(d for d in manifests.render("i", "gs://b/x", "h.example.com") if d["kind"] == "RayService")
    options = service["spec"]["rayClusterConfig"]["autoscalerOptions"]
    (name,) = (variable["name"] for variable in options["env"] if variable["name"] != "HOME")
    assert f'"{name}"' in Path(config.__file__).read_text()
