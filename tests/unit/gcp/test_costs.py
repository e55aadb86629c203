import re
from dataclasses import replace
from typing import Any

import pytest
from costs import MEASURED_HOW, MEASURED_PER_S, README, Prices, Sizes, month, page, with_page
from pods import capacity, container_of, groups_of


def test_readme_has_the_page_that_its_command_makes() -> None:
    text = README.read_text()
    ((_, rate),) = re.findall(r"`python gcp/costs\.py( --captions-per-s (\S+))? --write`", text)
    assert with_page(text, float(rate or MEASURED_PER_S)) == text, "run the command that stands above the table"


def test_another_rate_leaves_nothing_of_the_measured_one() -> None:
    assert f"{MEASURED_PER_S:g} captions/s" in MEASURED_HOW
    assert MEASURED_HOW in page(MEASURED_PER_S).replace("\n", " ")
    other = page(10)
    assert "`python gcp/costs.py --captions-per-s 10 --write`" in other
    assert "10 captions/s is what was given." in other
    assert "6 requests/s each" in other
    assert f"{MEASURED_PER_S:g} captions/s" not in other


def test_a_month_by_hand() -> None:
    prices = replace(Prices(), gib_h=0, spot_gib_h=0, load_balancer_gb=0.01, egress_gb=0, log_gib=1.0, free_log_gib=0)
    pods = {"head_cpus": 1.5, "autoscaler_cpus": 0.4, "operator_cpus": 0.1, "worker_cpus": 3}
    sizes = replace(Sizes(), **pods, picture_bytes=1e6, log_bytes=(1 << 30) / 1000, image_gib=5)
    cost = month(10, 5, prices, sizes)
    # 10 requests/s need 10 / (5 x 0.6) workers: four, of which two are always there.
    assert cost.num_workers == 4
    fixed = 730 * (2 * 0.0445 + 0.10 + 0.025)
    traffic = 10 * 730 * 3600 * 0.001 * 0.01  # a megabyte each
    logs = 10 * 730 * 3600 / 1000  # a thousandth of a GiB each
    assert cost.on_demand == pytest.approx(fixed + traffic + logs + 2 * 5 * 0.10 + 730 * 4 * 3 * 0.0445)
    assert cost.on_demand - cost.with_spot == pytest.approx(730 * 2 * 3 * (0.0445 - 0.0133))
    assert cost.per_million == pytest.approx(cost.with_spot / 26.28)
    assert month(0.1, 5, prices, sizes).num_workers == 2


def test_sizes_are_those_of_the_manifests(ray_service: dict[str, Any]) -> None:
    groups, sizes = groups_of(ray_service), Sizes()
    assert capacity(groups["cpu"]) == {"num_cpus": sizes.worker_cpus, "num_gpus": 0, "memory": sizes.worker_gib * 2**30}
    assert groups["cpu"]["minReplicas"] == sizes.num_always
    autoscaler = ray_service["spec"]["rayClusterConfig"]["autoscalerOptions"]["resources"]["limits"]
    assert autoscaler == {"cpu": f"{sizes.autoscaler_cpus * 1000:.0f}m", "memory": f"{sizes.autoscaler_gib:g}Gi"}
    head = container_of(groups["head"])["resources"]["limits"]
    assert (head["cpu"], head["memory"]) == (f"{sizes.head_cpus:g}", f"{sizes.head_gib:g}Gi")
