"""Scores of predicted captions against their references: BLEU (nltk), CIDEr and ROUGE-L (pycocoevalcap).

Captions come as lists of words, tokenised alike on both sides. All scores are on the scale of the libraries:
BLEU and ROUGE-L from 0 to 1, CIDEr from 0 to 10, where papers print 0.47 as 47.
"""

import sys
from collections.abc import Container, Mapping, Sequence
from fractions import Fraction
from typing import Any

from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pydantic import Field

from caption_ray.config import Settings
from caption_ray.errors import CaptionRayError

BLEU_WEIGHTS = [(1.0,), (1 / 2, 1 / 2), (1 / 3, 1 / 3, 1 / 3), (1 / 4, 1 / 4, 1 / 4, 1 / 4)]
NAMES_IN_ERROR = 3


class CaptionScores(Settings):
    """How well a set of pictures is captioned, and what the captions are like."""

    bleu_1: float = Field(description="Corpus BLEU over single words, 0 to 1.")
    bleu_2: float = Field(description="Corpus BLEU up to pairs of words.")
    bleu_3: float = Field(description="Corpus BLEU up to three words.")
    bleu_4: float = Field(description="Corpus BLEU up to four words, unsmoothed.")
    cider: float = Field(description="Mean CIDEr-D, 0 to 10; word weights from these pictures' references.")
    rouge_l: float = Field(description="Mean ROUGE-L F-score (beta 1.2), 0 to 1.")
    num_pictures: int = Field(description="Pictures scored.")
    mean_words: float = Field(description="Mean length of a predicted caption, words.")
    mean_reference_words: float = Field(description="Mean length of a reference, words.")
    unknown_share: float = Field(description="Share of the references' words that the vocabulary lacks.")


class PictureScores(Settings):
    """How well one picture is captioned."""

    cider: float = Field(description="CIDEr-D, 0 to 10.")
    bleu_4: float = Field(description="Sentence BLEU-4, smoothed (Chen and Cherry 2014, method 1).")
    rouge_l: float = Field(description="ROUGE-L F-score, 0 to 1.")


def score_captions(
    predicted: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[Sequence[str]]],
    vocabulary_words: Container[str],
) -> CaptionScores:
    """Score one predicted caption per picture; both mappings go from a picture's name to words.

    BLEU is Papineni et al. (2002) over the whole corpus: an order of n-grams without a single match makes
    it 0. As nltk counts, a prediction too short to have n words in a row still counts as one wrong n-gram.
    CIDEr (Vedantam et al. 2015, the "D" variant) weighs n-grams by how few of the scored pictures have
    them, so it depends on the set, and is 0 for a set of one. An empty prediction scores 0.
    Raises CaptionRayError where the names differ, where there are none, or a reference has no words.
    """
    names = _check_names(predicted, references)
    predictions = [list(predicted[name]) for name in names]
    reference_lists = [[list(words) for words in references[name]] for name in names]
    bleu = corpus_bleu(reference_lists, predictions, weights=BLEU_WEIGHTS, smoothing_function=_nearly_zero_for_zero)
    # What is left of a vanished precision is a number near 1e-77; BLEU means 0 by it.
    bleu_1, bleu_2, bleu_3, bleu_4 = (float(score) if score > 1e-50 else 0.0 for score in bleu)
    cider = _cider(names, predicted, references)
    rouge_l = _rouge_l(names, predicted, references)
    all_references = [words for lists in reference_lists for words in lists]
    num_reference_words = sum(map(len, all_references))
    num_unknown = sum(word not in vocabulary_words for words in all_references for word in words)
    return CaptionScores(
        bleu_1=bleu_1,
        bleu_2=bleu_2,
        bleu_3=bleu_3,
        bleu_4=bleu_4,
        cider=sum(cider) / len(names),
        rouge_l=sum(rouge_l) / len(names),
        num_pictures=len(names),
        mean_words=sum(map(len, predictions)) / len(names),
        mean_reference_words=num_reference_words / len(all_references),
        unknown_share=num_unknown / num_reference_words,
    )


def score_each(
    predicted: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[Sequence[str]]]
) -> dict[str, PictureScores]:
    """Score every picture by itself, to sort the best from the worst; in the order of `predicted`.

    CIDEr averages to that of `score_captions`; BLEU does not, being smoothed and counted per picture.
    Raises as `score_captions` does.
    """
    names = _check_names(predicted, references)
    smoothing = SmoothingFunction().method1
    bleu_4 = (
        sentence_bleu([list(words) for words in references[name]], list(predicted[name]), smoothing_function=smoothing)
        for name in names
    )
    rows = zip(_cider(names, predicted, references), bleu_4, _rouge_l(names, predicted, references), strict=True)
    scores = {
        name: PictureScores(cider=cider, bleu_4=float(bleu), rouge_l=rouge_l)
        for name, (cider, bleu, rouge_l) in zip(names, rows, strict=True)
    }
    return {name: scores[name] for name in predicted}


def _check_names(
    predicted: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[Sequence[str]]]
) -> list[str]:
    """Return the pictures' names in sorted order, so that sums round the same whatever the order was."""
    lacking, extra = references.keys() - predicted.keys(), predicted.keys() - references.keys()
    if lacking or extra:
        raise CaptionRayError(
            "each scored picture needs a prediction and references: "
            f"{_listing(lacking)} without a prediction, {_listing(extra)} without references; "
            "score the split that was decoded, all of it"
        )
    if not predicted:
        raise CaptionRayError("no pictures to score: the split is empty; choose another one")
    for name, lists in references.items():
        if not lists or not all(lists):
            raise CaptionRayError(
                f"{name}: every reference needs a word and every picture a reference; "
                "leave the picture or the empty reference out"
            )
    return sorted(predicted)


def _listing(names: set[str]) -> str:
    """Return the count of names and the first few, for an error."""
    if not names:
        return "0"
    some = ", ".join(sorted(names)[:NAMES_IN_ERROR])
    return f"{len(names)} ({some}{', ...' if len(names) > NAMES_IN_ERROR else ''})"


def _nearly_zero_for_zero(precisions: Sequence[Fraction], **_: Any) -> list[Fraction | float]:
    """Stand in for nltk's method 0, which warns; a plain 0 would make nltk skip that order of n-grams."""
    return [precision if precision.numerator else sys.float_info.min for precision in precisions]


def _cider(
    names: Sequence[str],
    predicted: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[Sequence[str]]],
) -> list[float]:
    truth, guesses = _as_sentences(names, predicted, references)
    return [float(score) for score in Cider().compute_score(truth, guesses)[1]]


def _rouge_l(
    names: Sequence[str],
    predicted: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[Sequence[str]]],
) -> list[float]:
    truth, guesses = _as_sentences(names, predicted, references)
    return [float(score) for score in Rouge().compute_score(truth, guesses)[1]]


def _as_sentences(
    names: Sequence[str],
    predicted: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[Sequence[str]]],
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return references and predictions as pycocoevalcap takes them: lists of sentences split at spaces."""
    truth = {name: [" ".join(words) for words in references[name]] for name in names}
    guesses = {name: [" ".join(predicted[name])] for name in names}
    return truth, guesses
