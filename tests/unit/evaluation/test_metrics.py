import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_ray.errors import CaptionRayError
from caption_ray.evaluation.metrics import score_captions, score_each

NO_WORDS: frozenset[str] = frozenset()


def split(captions: dict[str, str]) -> dict[str, list[str]]:
    return {name: caption.split() for name, caption in captions.items()}


def split_all(captions: dict[str, list[str]]) -> dict[str, list[list[str]]]:
    return {name: [caption.split() for caption in several] for name, several in captions.items()}


def test_perfect_captions_score_one_and_cider_ten() -> None:
    truth = {"x.jpg": "a dog runs fast", "y.jpg": "two cats sleep here"}
    scores = score_captions(split(truth), split_all({k: [v] for k, v in truth.items()}), NO_WORDS)
    assert (scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4) == (1.0, 1.0, 1.0, 1.0)
    assert scores.rouge_l == pytest.approx(1.0)
    assert scores.cider == pytest.approx(10.0)


def test_bleu_is_precision_times_brevity_penalty() -> None:
    scores = score_captions({"x": ["a", "dog", "sleeps"]}, {"x": [["a", "dog", "runs", "on", "grass"]]}, NO_WORDS)
    brevity = math.exp(1 - 5 / 3)
    assert scores.bleu_1 == pytest.approx(2 / 3 * brevity)
    assert scores.bleu_2 == pytest.approx(math.sqrt(2 / 3 * 1 / 2) * brevity)
    assert (scores.bleu_3, scores.bleu_4) == (0.0, 0.0)  # no three words in a row match


def test_bleu_counts_over_the_corpus_and_does_not_average_pictures() -> None:
    scores = score_captions(
        split({"x": "a dog runs fast", "y": "cow"}),
        split_all({"x": ["a dog runs fast"], "y": ["two cats sleep here"]}),
        NO_WORDS,
    )
    # 4 of 5 words match; 5 words were said where the references have 8. The average would be 0.5.
    assert scores.bleu_1 == pytest.approx(4 / 5 * math.exp(1 - 8 / 5))


def test_bleu_counts_a_repeated_word_as_often_as_a_reference_has_it() -> None:
    scores = score_captions({"x": ["the"] * 3}, {"x": [["the", "cat", "sat"]]}, NO_WORDS)
    assert scores.bleu_1 == pytest.approx(1 / 3)


def test_rouge_l_is_an_f_score_of_the_longest_common_subsequence() -> None:
    scores = score_captions({"x": ["a", "dog", "runs"]}, {"x": [["a", "big", "dog", "runs", "fast"]]}, NO_WORDS)
    precision, recall, beta_squared = 3 / 3, 3 / 5, 1.2**2
    expected = (1 + beta_squared) * precision * recall / (recall + beta_squared * precision)
    assert scores.rouge_l == pytest.approx(expected)


def test_cider_averages_over_references_and_over_orders_of_ngrams() -> None:
    each = score_each(
        split({"x": "a dog runs fast", "y": "two cats sleep", "z": "three"}),
        split_all(
            {
                "x": ["a dog runs fast", "some animal moves about"],  # half of the references match
                "y": ["two cats sleep"],  # no four words to match: three orders of four
                "z": ["nobody swims over there"],
            }
        ),
    )
    assert each["x"].cider == pytest.approx(10 / 2)
    assert each["y"].cider == pytest.approx(10 * 3 / 4)
    assert each["z"].cider == 0.0


def test_cider_gives_nothing_for_words_that_every_picture_has() -> None:
    truth = split_all({"x": ["a dog"], "y": ["a cat"]})
    each = score_each({"x": ["a"], "y": ["a", "cat"]}, truth)
    assert each["x"].cider == 0.0
    assert each["y"].cider == pytest.approx(10 * 2 / 4)  # one word and one pair match in full


def test_cider_of_a_single_picture_is_zero() -> None:
    assert score_each({"x": ["a", "dog"]}, {"x": [["a", "dog"]]})["x"].cider == 0.0


def test_smoothed_bleu_of_one_picture() -> None:
    each = score_each(split({"x": "a dog runs fast"}), split_all({"x": ["a dog runs now"]}))
    # The absent 4-gram counts as 0.1 of one.
    assert each["x"].bleu_4 == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** (1 / 4))


def test_an_empty_prediction_scores_zero() -> None:
    truth = split_all({"x": ["a dog runs fast"], "y": ["two cats sleep here"]})
    predicted = {"x": [], "y": ["two", "cats", "sleep", "here"]}
    each = score_each(predicted, truth)
    assert (each["x"].cider, each["x"].bleu_4, each["x"].rouge_l) == (0.0, 0.0, 0.0)
    scores = score_captions(predicted, truth, NO_WORDS)
    assert scores.cider == pytest.approx(5.0)
    # nltk counts the empty caption as one wrong n-gram of each order, and 4 words stand against 8.
    precisions = 4 / 5 * 3 / 4 * 2 / 3 * 1 / 2
    assert scores.bleu_4 == pytest.approx(precisions ** (1 / 4) * math.exp(1 - 8 / 4))
    nothing = score_captions({"x": [], "y": []}, truth, NO_WORDS)
    assert (nothing.bleu_1, nothing.bleu_4, nothing.cider, nothing.rouge_l) == (0.0, 0.0, 0.0, 0.0)


def test_lengths_and_unknown_words_are_counted_over_all_references() -> None:
    scores = score_captions(
        split({"x": "a dog", "y": "a big cat sleeps here"}),
        split_all({"x": ["a dog", "a hound sits"], "y": ["a cat naps"]}),
        {"a", "dog", "cat"},
    )
    assert scores.num_pictures == 2
    assert scores.mean_words == 3.5
    assert scores.mean_reference_words == pytest.approx(8 / 3)
    assert scores.unknown_share == 3 / 8  # hound, sits, naps


def test_different_names_are_refused_by_name() -> None:
    with pytest.raises(CaptionRayError, match=r"1 \(b\.jpg\) without a prediction, 1 \(c\.jpg\) without ref"):
        score_captions({"a.jpg": ["x"], "c.jpg": ["x"]}, {"a.jpg": [["x"]], "b.jpg": [["x"]]}, NO_WORDS)


def test_nothing_to_score_and_empty_references_are_refused() -> None:
    with pytest.raises(CaptionRayError, match="no pictures to score"):
        score_each({}, {})
    with pytest.raises(CaptionRayError, match="b: every reference needs a word"):
        score_each({"a": ["x"], "b": ["x"]}, {"a": [["x"]], "b": [["x"], []]})


def test_pictures_scores_come_in_the_order_of_predictions() -> None:
    predicted = split({"b": "a dog", "c": "a dog", "a": "a dog"})
    assert list(score_each(predicted, split_all({name: ["a dog"] for name in sorted(predicted)}))) == ["b", "c", "a"]


def test_the_libraries_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score_captions({"x": ["a"]}, {"x": [["a", "dog"]]}, NO_WORDS)
    assert capfd.readouterr() == ("", "")


sentences = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "sleeps", "on", "grass"]), max_size=7)
corpora = st.lists(
    st.tuples(sentences, st.lists(sentences.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=5
)


@given(corpora, st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_the_order_and_stay_in_range(corpus: list, random) -> None:
    predicted = {f"{number}.jpg": caption for number, (caption, _) in enumerate(corpus)}
    references = {f"{number}.jpg": several for number, (_, several) in enumerate(corpus)}
    scores = score_captions(predicted, references, {"a"})
    names = list(predicted)
    random.shuffle(names)
    assert score_captions({name: predicted[name] for name in names}, references, {"a"}) == scores
    each = score_each(predicted, {name: references[name] for name in names})
    assert list(each) == list(predicted)
    assert sum(one.cider for one in each.values()) / len(each) == pytest.approx(scores.cider)
    for value in (scores.bleu_1, scores.bleu_4, scores.rouge_l, scores.cider / 10, scores.unknown_share):
        assert 0 <= value <= 1 + 1e-9
