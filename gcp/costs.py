"""What the service costs a month on GKE Autopilot, from how many captions a worker gives a second.

`python gcp/costs.py` prints the page for the rate that was measured; `--captions-per-s` takes your own, and `--write`
puts it into gcp/README.md. A worker is a pod as gcp/rayservice.yaml sizes it, which holds one captioner and one
ingress. There is no row for GPUs: nobody has measured the service on an L4.
"""

import argparse
import math
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- costs: begin -->\n", "<!-- costs: end -->\n"
LOADS_PER_S = (1, 10, 100)
MEASURED_PER_S = 45.0
MEASURED_HOW = (
    "45 captions/s is what the service under Ray gave to 16 clients for pictures of 224 x 224, weights of ResNet50's "
    "sizes and beam 3, on two cores of an AMD EPYC that the clients shared, before the decoder was compiled. A worker "
    "has three."
)
HOURS = 730
GB, GIB_PER_GB = 1e9, 1e9 / (1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """List prices in us-central1, US dollars, for general-purpose pods; check them before you count on them."""

    cpu_h: float = 0.0445
    gib_h: float = 0.0049225
    spot_cpu_h: float = 0.0133
    spot_gib_h: float = 0.0014767
    cluster_h: float = 0.10
    load_balancer_h: float = 0.025
    load_balancer_gb: float = 0.008
    egress_gb: float = 0.12
    log_gib: float = 0.50
    free_log_gib: float = 50.0
    registry_gib: float = 0.10
    redis_gib_h: float = 0.049
    """Memorystore, basic tier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a pod asks for, and what a request moves."""

    worker_cpus: float = 3
    worker_gib: float = 8
    head_cpus: float = 2
    head_gib: float = 6
    autoscaler_cpus: float = 0.5
    autoscaler_gib: float = 1
    operator_cpus: float = 0.1
    operator_gib: float = 0.5
    image_gib: float = 1
    """In the registry, compressed; two of them are kept."""
    num_always: int = 2
    picture_bytes: float = 100e3
    answer_bytes: float = 1e3
    log_bytes: float = 500
    utilisation: float = 0.6
    """Share of its rate that a worker is given, so that a burst finds room while others start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A month at one load. Costs in US dollars: all workers on demand, or those above the smallest number on spot."""

    requests_per_s: float
    num_workers: int
    on_demand: float
    with_spot: float

    @property
    def per_million(self) -> float:
        """Cost of a million requests, with spot workers."""
        return self.with_spot / (self.requests_per_s * HOURS * 3600) * 1e6


def month(requests_per_s: float, captions_per_s: float, prices: Prices, sizes: Sizes) -> Month:
    """Return a month at a steady load. captions_per_s: of one worker."""
    num_workers = max(sizes.num_always, math.ceil(requests_per_s / (captions_per_s * sizes.utilisation)))
    worker_h = sizes.worker_cpus * prices.cpu_h + sizes.worker_gib * prices.gib_h
    spot_h = sizes.worker_cpus * prices.spot_cpu_h + sizes.worker_gib * prices.spot_gib_h
    other_cpus = sizes.head_cpus + sizes.autoscaler_cpus + sizes.operator_cpus
    other_gib = sizes.head_gib + sizes.autoscaler_gib + sizes.operator_gib
    other_h = other_cpus * prices.cpu_h + other_gib * prices.gib_h
    num_requests = requests_per_s * HOURS * 3600
    traffic = (
        num_requests / GB * (sizes.picture_bytes * prices.load_balancer_gb + sizes.answer_bytes * prices.egress_gb)
    )
    logs = max(0.0, num_requests * sizes.log_bytes / GB * GIB_PER_GB - prices.free_log_gib) * prices.log_gib
    registry = 2 * sizes.image_gib * prices.registry_gib
    fixed = HOURS * (other_h + prices.cluster_h + prices.load_balancer_h) + traffic + logs + registry
    num_spot = num_workers - sizes.num_always
    return Month(
        requests_per_s=requests_per_s,
        num_workers=num_workers,
        on_demand=fixed + HOURS * num_workers * worker_h,
        with_spot=fixed + HOURS * (sizes.num_always * worker_h + num_spot * spot_h),
    )


def table(captions_per_s: float) -> str:
    """Return the table, in Markdown."""
    rows = [
        "| Requests/s, all month | Workers | $ a month, on demand | $ a month, spot above two | $ a million requests |",
        "|---|---|---|---|---|",
    ]
    for load in LOADS_PER_S:
        cost = month(load, captions_per_s, Prices(), Sizes())
        rows.append(
            f"| {load} | {cost.num_workers} | {cost.on_demand:,.0f} | {cost.with_spot:,.0f} | {cost.per_million:,.2f} |"
        )
    return "\n".join(rows) + "\n"


def page(captions_per_s: float) -> str:
    """Return the table, how it was called for, and what is in it, in Markdown."""
    prices, sizes = Prices(), Sizes()
    is_measured = captions_per_s == MEASURED_PER_S
    option = "" if is_measured else f" --captions-per-s {captions_per_s:g}"
    how = MEASURED_HOW if is_measured else f"{captions_per_s:g} captions/s is what was given."
    redis = HOURS * prices.redis_gib_h
    paragraphs = (
        f"{how} Put in your own rate, of your bundle on your machines. Workers are loaded to {sizes.utilisation:g} of "
        f"it, so that a burst finds room while others start: {captions_per_s * sizes.utilisation:.0f} requests/s each.",
        f"List prices of GKE Autopilot in us-central1, as `gcp/costs.py` has them: {prices.cpu_h:g} $ a CPU and hour, "
        f"{prices.gib_h:.4f} $ a GiB and hour, spot at {prices.spot_cpu_h / prices.cpu_h:.1f} of that. In it are a "
        f"head of {sizes.head_cpus:g} CPUs, the autoscaler, the operator, the cluster, the load balancer, its traffic "
        f"({sizes.picture_bytes / 1e3:.0f} kB a picture), logs, and two images in the registry. Not in it: bundles in "
        f"the bucket (cents), metrics (a few $), and Redis, if there is one ({redis:.0f} $ for a GiB of Memorystore, "
        "basic tier). While an image is changed there are two clusters. Small loads pay for what is always there: "
        f"{sizes.num_always} workers and a head. There is no row for GPUs: the service was not measured on an L4.",
    )
    text = "\n\n".join(textwrap.fill(paragraph, 118) for paragraph in paragraphs)
    return f"`python gcp/costs.py{option} --write`:\n\n{table(captions_per_s)}\n{text}\n"


def with_page(text: str, captions_per_s: float) -> str:
    """Return the README with the page for this rate."""
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}{page(captions_per_s)}{END}{tail}"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions-per-s", type=float, default=MEASURED_PER_S)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    if asked.write:
        README.write_text(with_page(README.read_text(), asked.captions_per_s))
    else:
        sys.stdout.write(page(asked.captions_per_s))


if __name__ == "__main__":
    main()
