"""What the service costs a month on GKE Autopilot, from how many captions a worker gives a second.

`python gcp/costs.py --captions-per-s 65` prints the table; `--write` puts it into gcp/README.md. A worker is a pod as
gcp/rayservice.yaml sizes it, which holds one captioner and one ingress.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- costs: begin -->\n", "<!-- costs: end -->\n"
LOADS_PER_S = (1, 10, 100)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a pod asks for, and what a request moves."""

    worker_cpus: float = 3
    worker_gib: float = 8
    other_cpus: float = 2 + 0.5 + 0.1
    """The head, the autoscaler beside it, and the operator."""
    other_gib: float = 6 + 1 + 0.5
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
    other_h = sizes.other_cpus * prices.cpu_h + sizes.other_gib * prices.gib_h
    num_requests = requests_per_s * HOURS * 3600
    traffic = (
        num_requests / GB * (sizes.picture_bytes * prices.load_balancer_gb + sizes.answer_bytes * prices.egress_gb)
    )
    logs = max(0.0, num_requests * sizes.log_bytes / GB * GIB_PER_GB - prices.free_log_gib) * prices.log_gib
    fixed = HOURS * (other_h + prices.cluster_h + prices.load_balancer_h) + traffic + logs
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


def with_table(text: str, captions_per_s: float) -> str:
    """Return the README with the table for this rate."""
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    command = f"`python gcp/costs.py --captions-per-s {captions_per_s:g} --write`:\n\n"
    return f"{head}{BEGIN}{command}{table(captions_per_s)}{END}{tail}"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions-per-s", type=float, required=True)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    if asked.write:
        README.write_text(with_table(README.read_text(), asked.captions_per_s))
    else:
        sys.stdout.write(table(asked.captions_per_s))


if __name__ == "__main__":
    main()
