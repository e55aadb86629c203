"""Which of two models captions the same pictures better, and how sure that is: the paired bootstrap over pictures.

Koehn (2004), "Statistical Significance Tests for Machine Translation Evaluation": pictures are drawn with replacement,
both models are scored on those drawn, and the spread of the difference tells how far chance alone can move it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from nltk.translate.bleu_score import closest_ref_length, modified_precision
from numpy.typing import NDArray
from pydantic import Field, computed_field

from caption_ray.config import Settings
from caption_ray.evaluation.metrics import score_each

Metric = Literal["cider", "bleu_4"]
Captions = Mapping[str, Sequence[str]]
References = Mapping[str, Sequence[Sequence[str]]]

_CONFIDENCE = 0.95
_ORDERS = 4
_DRAWS_AT_ONCE = 500


class Comparison(Settings):
    """A candidate against the model that serves, on the same pictures."""

    metric: Metric
    candidate: float = Field(description="The candidate's score on all pictures.")
    serving: float = Field(description="That of the model that serves.")
    difference: float = Field(description="Candidate less serving.")
    low: float = Field(description="Lower end of the difference's 95 % interval.")
    high: float = Field(description="Upper end.")
    share_better: float = Field(description="Share of the draws in which the candidate was better.")
    num_pictures: int
    num_draws: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Literal["better", "no clear difference", "worse"]:
        """What the interval says of the candidate: where 0 lies in it, chance alone could make the difference."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no clear difference"

    def __str__(self) -> str:
        return (
            f"{self.metric}: candidate {self.candidate:.4f}, serving {self.serving:.4f}, difference "
            f"{self.difference:+.4f}, 95 % interval [{self.low:+.4f}, {self.high:+.4f}] over {self.num_pictures:,} "
            f"pictures: {self.verdict}"
        )


def compare(
    candidate: Captions,
    serving: Captions,
    references: References,
    metric: Metric = "cider",
    *,
    num_draws: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two models' captions of the same pictures.

    CIDEr's word weights stay those of all pictures in every draw; BLEU-4 is that of the drawn corpus.
    Raises CaptionRayError where the names differ, as scoring does.
    """
    names = sorted(references)
    statistics = [_statistics(captions, references, names, metric) for captions in (candidate, serving)]
    generator = np.random.default_rng(seed)
    everything = np.ones((1, len(names)))
    ours, theirs = (float(_score(everything, found, metric)[0]) for found in statistics)
    differences = []
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        draws = min(_DRAWS_AT_ONCE, num_draws - start)
        # How often each picture is drawn: the same for both models, which is what pairs them.
        weights = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws).astype(float)
        differences.append(_score(weights, statistics[0], metric) - _score(weights, statistics[1], metric))
    found = np.concatenate(differences)
    low, high = np.quantile(found, ((1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2))
    return Comparison(
        metric=metric,
        candidate=ours,
        serving=theirs,
        difference=ours - theirs,
        low=float(low),
        high=float(high),
        share_better=float((found > 0).mean()),
        num_pictures=len(names),
        num_draws=num_draws,
    )


def _statistics(
    captions: Captions, references: References, names: Sequence[str], metric: Metric
) -> NDArray[np.float64]:
    """Return what a corpus score is made of, a row a picture, to be summed over pictures.

    CIDEr: the score, 1. BLEU-4: per order of n-grams those that match, and all; then words, and words of the reference
    nearest in length.
    """
    each = score_each(captions, references)  # checks the names for BLEU too
    if metric == "cider":
        return np.array([(each[name].cider, 1.0) for name in names])
    rows = []
    for name in names:
        words, lists = list(captions[name]), [list(reference) for reference in references[name]]
        precisions = [modified_precision(lists, words, order) for order in range(1, _ORDERS + 1)]
        lengths = (len(words), closest_ref_length(lists, len(words)))
        rows.append([*(p.numerator for p in precisions), *(p.denominator for p in precisions), *lengths])
    return np.array(rows, dtype=float)


def _score(weights: NDArray[np.float64], statistics: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Return the corpus score of each draw. weights: (draws, pictures)."""
    sums = weights @ statistics
    if metric == "cider":
        return np.asarray(sums[:, 0] / sums[:, 1])
    matches, totals = sums[:, :_ORDERS], sums[:, _ORDERS : 2 * _ORDERS]
    length, reference_length = sums[:, -2], sums[:, -1]
    with np.errstate(divide="ignore"):  # an order without a match: log 0 makes the score 0, as it should be
        precision = np.exp(np.log(matches / totals).mean(1))
        penalty = np.where(length > reference_length, 1.0, np.exp(1 - reference_length / length))
    return np.asarray(precision * penalty)
