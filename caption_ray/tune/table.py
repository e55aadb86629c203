"""How a sweep stands, as lines for the terminal and as a leaderboard in Markdown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from caption_ray.tune.records import Status, TrialRecord
from caption_ray.tune.space import PATHS, Value

MAX_LINES = 16
"""Lines of the table in the terminal; a sweep of more trials shows its best and those that run."""

SHORT_NAMES = {path: name.replace("_size", "").replace("_", " ") for name, path in PATHS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One trial's place. `score` and those beside it are of its best epoch; None before its first."""

    place: int
    record: TrialRecord
    score: float | None
    best_epoch: int | None
    is_preset: bool

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the best epoch reported; empty before the first."""
        return next((epoch for epoch in self.record.epochs if epoch["epoch"] == self.best_epoch), {})

    @property
    def status(self) -> Status:
        """How it ended, if it did."""
        return self.record.status


def rank(records: Iterable[TrialRecord], metric: str, preset: Mapping[str, Value]) -> list[Standing]:
    """Return the trials from best to worst by their best dev score, failed ones among them by what they had reached."""
    found = [(record, record.best(metric)) for record in records]
    found.sort(key=lambda pair: (-pair[1][0] if pair[1] else float("inf"), pair[0].number))
    return [
        Standing(
            place=place,
            record=record,
            score=best[0] if best else None,
            best_epoch=best[1] if best else None,
            is_preset=record.settings == preset,
        )
        for place, (record, best) in enumerate(found, 1)
    ]


def winner(standings: Sequence[Standing]) -> Standing | None:
    """Return the best of the trials that are over and did not fail."""
    return next((one for one in standings if one.score is not None and one.status in ("finished", "stopped")), None)


def summary(name: str, records: Sequence[TrialRecord], num_trials: int, metric: str) -> str:
    """Return one line on how far a sweep is."""
    counts = Counter(record.status for record in records)
    scores = [best[0] for record in records if record.status != "failed" and (best := record.best(metric))]
    return (
        f"sweep {name}: {counts['finished']} finished, {counts['stopped']} stopped early, {counts['failed']} failed, "
        f"{counts['running']} running, of {num_trials} trials; "
        + (f"best {metric} {max(scores):.3f}" if scores else "no score yet")
    )


def live_table(standings: Sequence[Standing], metric: str, searched: Sequence[str]) -> str:
    """Return the table that is shown while a sweep runs."""
    num_best = max(0, MAX_LINES - sum(one.status == "running" for one in standings))
    rows = [one for one in standings if one.status == "running" or one.place <= num_best]
    head = ["place", "trial", "status", "epoch", f"best {metric}", "now", *(SHORT_NAMES[path] for path in searched)]
    lines = [head, *(_line(one, metric, searched) for one in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _line(one: Standing, metric: str, searched: Sequence[str]) -> list[str]:
    last = one.record.epochs[-1] if one.record.epochs else None
    return [
        str(one.place),
        f"{one.record.number}{' (preset)' if one.is_preset else ''}",
        one.status,
        f"{last['epoch']:g}" if last else "-",
        "-" if one.score is None else f"{one.score:.3f}",
        f"{last[metric]:.3f}" if last else "-",
        *(f"{one.record.settings[path]:g}" for path in searched),
    ]


def markdown(standings: Sequence[Standing], metric: str, searched: Sequence[str]) -> str:
    """Return the leaderboard as a table in Markdown, the preset's own trial in bold."""
    names = {"cider": "CIDEr", "bleu_4": "BLEU-4"}
    other = next(name for name in names if name != metric)
    head = ["", "Trial", names[metric], names[other], "Best epoch", "Epochs", "Ended"]
    head += [SHORT_NAMES[path].capitalize() for path in searched]
    lines = [head]
    for one in standings:
        cells = [str(one.place), f"{one.record.number}{' (preset)' if one.is_preset else ''}"]
        cells += [f"{one.metrics[name]:.3f}" if one.metrics else "" for name in (metric, other)]
        cells += [str(one.best_epoch or ""), str(len(one.record.epochs)), _ending(one)]
        cells += [f"{one.record.settings[path]:g}" for path in searched]
        lines.append([f"**{cell}**" if one.is_preset and cell else cell for cell in cells])
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]]) + "\n"


def _ending(one: Standing) -> str:
    return {"finished": "by itself", "stopped": "early", "failed": "failed", "running": "running"}[one.status]
