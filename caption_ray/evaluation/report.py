"""A self-contained HTML page of scored captions: opens from disk, asks nothing of the network."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caption_ray import templates
from caption_ray.evaluation.metrics import CaptionScores, PictureScores

MAX_ROWS = 400
ROWS_PER_GROUP = 100
MAX_BINS = 25
BIN_WIDTHS = (0.05, 0.1, 0.2, 0.25, 0.5)  # CIDEr ends at 10, so the widest gives 20 bins
CHART_WIDTH, CHART_HEIGHT = 720, 150  # user units of the SVG


@dataclass(frozen=True)
class ReportRow:
    """One scored picture. `log_probability` is that of the predicted caption, natural logarithm."""

    name: str
    picture_jpeg: bytes
    predicted: str
    references: Sequence[str]
    scores: PictureScores
    log_probability: float

    @property
    def picture_uri(self) -> str:
        """The picture as a data: URI."""
        return "data:image/jpeg;base64," + base64.b64encode(self.picture_jpeg).decode("ascii")


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram: pictures with `low` <= CIDEr < `high`, placed in user units of the SVG."""

    low: float
    high: float
    count: int
    x: float
    y: float
    width: float
    height: float


def render_report(title: str, scores: CaptionScores, rows: Sequence[ReportRow], settings: Mapping[str, str]) -> str:
    """Return the page: scores, a histogram of CIDEr, and the pictures with their captions, best first.

    Up to 400 rows are all shown; of more, the best 100, the worst 100 and 100 spread evenly between them,
    which the page says. Pictures are embedded as they are: hand in small ones.
    settings: what the scores were made with, shown as name and value.
    """
    ranked = sorted(rows, key=lambda row: (-row.scores.cider, row.name))
    bars = histogram([row.scores.cider for row in rows])
    return (
        templates.environment("evaluation")
        .get_template("report.html")
        .render(
            title=title,
            score_table=score_table(scores),
            scores=scores,
            rows=select_rows(ranked),
            num_rows=len(rows),
            rows_per_group=ROWS_PER_GROUP,
            settings=settings,
            bars=bars,
            tallest=max((bar.count for bar in bars), default=0),
            chart_width=CHART_WIDTH,
            chart_height=CHART_HEIGHT,
        )
    )


def select_rows(ranked: Sequence[ReportRow]) -> list[ReportRow]:
    """Return all rows up to 400; of more, 100 from the top, 100 evenly from the middle, 100 from the end."""
    if len(ranked) <= MAX_ROWS:
        return list(ranked)
    middle = ranked[ROWS_PER_GROUP:-ROWS_PER_GROUP]
    step = len(middle) / ROWS_PER_GROUP
    sampled = [middle[int((number + 0.5) * step)] for number in range(ROWS_PER_GROUP)]
    return [*ranked[:ROWS_PER_GROUP], *sampled, *ranked[-ROWS_PER_GROUP:]]


def score_table(scores: CaptionScores) -> list[tuple[str, str]]:
    """Return the scores as label and text, in the order in which papers give them."""
    return [
        ("BLEU-1", f"{scores.bleu_1:.3f}"),
        ("BLEU-2", f"{scores.bleu_2:.3f}"),
        ("BLEU-3", f"{scores.bleu_3:.3f}"),
        ("BLEU-4", f"{scores.bleu_4:.3f}"),
        ("CIDEr", f"{scores.cider:.3f}"),
        ("ROUGE-L", f"{scores.rouge_l:.3f}"),
        ("Pictures", f"{scores.num_pictures:,}"),
        ("Words per caption", f"{scores.mean_words:.1f}"),
        ("Words per reference", f"{scores.mean_reference_words:.1f}"),
        ("Words not in vocabulary", f"{100 * scores.unknown_share:.1f} %"),
    ]


def histogram(values: Sequence[float]) -> list[Bar]:
    """Count values, which are 0 or more, in bins of a round width from 0 on; no bars without values."""
    if not values:
        return []
    top = max(values)
    width = next((w for w in BIN_WIDTHS if top / w < MAX_BINS), BIN_WIDTHS[-1])
    # Rounding keeps 0.3 / 0.1 = 2.999... in the bin that begins at 0.3.
    counts = [0] * (math.floor(round(top / width, 9)) + 1)
    for value in values:
        counts[math.floor(round(value / width, 9))] += 1
    bar_width = CHART_WIDTH / len(counts)
    unit = CHART_HEIGHT / max(counts)
    return [
        Bar(
            low=index * width,
            high=(index + 1) * width,
            count=count,
            x=index * bar_width,
            y=CHART_HEIGHT - count * unit,
            width=bar_width,
            height=count * unit,
        )
        for index, count in enumerate(counts)
    ]
