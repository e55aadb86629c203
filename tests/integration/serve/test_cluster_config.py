"""The Serve config of gcp/rayservice.yaml, by the same rules as that of the clone."""

import sys
from pathlib import Path

import yaml
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
