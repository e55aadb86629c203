"""A sweep as one self-contained HTML page: opens from disk, asks nothing of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caption_ray import templates
from caption_ray.tune import charts
from caption_ray.tune.search import Importance
from caption_ray.tune.space import SearchSpace
from caption_ray.tune.table import SHORT_NAMES, Standing, winner

METRIC_NAMES = {"cider": "CIDEr", "bleu_4": "BLEU-4", "dev_loss": "Dev loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepView:
    """What the page shows. standings: from best to worst.  facts: how the sweep was made, shown as name and value."""

    name: str
    summary: str
    metric: str
    space: SearchSpace
    standings: Sequence[Standing]
    importances: Sequence[Importance]
    command: str | None
    facts: Mapping[str, str]


def render_sweep(view: SweepView) -> str:
    """Return the page: the winner and its command, learning curves, parallel coordinates, importances, leaderboard."""
    shown = [view.metric, *(name for name in METRIC_NAMES if name != view.metric)]
    return (
        templates.environment("tune")
        .get_template("report.html")
        .render(
            view=view,
            metric=METRIC_NAMES[view.metric],
            columns=[(name, METRIC_NAMES[name]) for name in shown],
            settings=[(path, SHORT_NAMES[path]) for path in view.space.searched],
            fixed=[(SHORT_NAMES[path], value) for path, value in view.space.fixed.items()],
            best=winner(view.standings),
            is_broken_off=any(one.status == "running" for one in view.standings),
            curves=charts.learning_curves(view.standings, view.metric),
            parallel=charts.parallel_coordinates(view.standings, view.space, METRIC_NAMES[view.metric]),
            bars=charts.importance_bars(view.importances),
            num_epochs=sum(len(one.record.epochs) for one in view.standings),
            sizes=charts,
        )
    )
