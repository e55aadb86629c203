import numpy as np
import pytest

from caption_ray.errors import CaptionRayError
from caption_ray.evaluation.comparison import Metric, compare
from caption_ray.evaluation.metrics import score_captions

WORDS = "a dog runs over the green grass while some children watch it".split()  # noqa: SIM905


def make(num_pictures: int, share_wrong: float, seed: int) -> tuple[dict[str, list[str]], dict[str, list[list[str]]]]:
    """Return captions of which a share has its words shuffled, and two references each."""
    generator = np.random.default_rng(seed)
    names = [f"{number:03d}.jpg" for number in range(num_pictures)]
    truth = np.random.default_rng(99)
    references = {
        name: [[str(word) for word in truth.choice(WORDS, 8, replace=False)] for _ in range(2)] for name in names
    }
    captions = {}
    for name in names:
        words = list(references[name][0])
        if generator.random() < share_wrong:
            generator.shuffle(words)
        captions[name] = words
    return captions, references


@pytest.mark.parametrize("metric", ["cider", "bleu_4"])
def test_scores_are_those_of_the_whole_split(metric: Metric) -> None:
    (candidate, references), (serving, _) = make(60, 0.3, 1), make(60, 0.5, 2)
    found = compare(candidate, serving, references, metric, num_draws=100)
    for captions, score in ((candidate, found.candidate), (serving, found.serving)):
        assert score == pytest.approx(getattr(score_captions(captions, references, WORDS), metric), rel=1e-9)
    assert found.difference == pytest.approx(found.candidate - found.serving)
    assert found.num_pictures == 60


@pytest.mark.parametrize("num_words", [3, 5, 8])
def test_bleu_of_captions_that_are_short_is_that_of_the_whole_split(num_words: int) -> None:
    """By the reference nearest in length, 5 or 8 words; one of three words still has a wrong n-gram of four."""
    words = WORDS[:8]
    captions, references = {"a": words[:num_words], "b": words[:4]}, {name: [words, words[:5]] for name in ("a", "b")}
    found = compare(captions, captions, references, "bleu_4", num_draws=10)
    assert found.candidate == pytest.approx(score_captions(captions, references, words).bleu_4, rel=1e-9)


@pytest.mark.parametrize("metric", ["cider", "bleu_4"])
def test_clear_difference_is_told_from_chance(metric: Metric) -> None:
    (good, references), (bad, _) = make(80, 0.1, 1), make(80, 0.7, 2)
    better, worse = compare(good, bad, references, metric), compare(bad, good, references, metric)
    assert better.low > 0
    assert better.share_better == 1.0
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))
    assert str(better).endswith("over 80 pictures: better")
    assert str(worse).endswith("over 80 pictures: worse")


def test_model_against_itself_is_no_worse() -> None:
    captions, references = make(30, 0.5, 1)
    found = compare(captions, captions, references)
    assert (found.difference, found.low, found.high, found.share_better) == (0, 0, 0, 0)
    assert found.verdict == "no clear difference"
    assert str(found).endswith("pictures: no clear difference")


def test_interval_is_that_of_a_mean_where_the_score_is_one() -> None:
    """CIDEr's difference is a mean over pictures, whose bootstrap interval is near 1.96 standard errors."""
    (candidate, references), (serving, _) = make(400, 0.4, 1), make(400, 0.5, 2)
    found = compare(candidate, serving, references, num_draws=4000)
    from caption_ray.evaluation.metrics import score_each

    ours, theirs = score_each(candidate, references), score_each(serving, references)
    differences = np.array([ours[name].cider - theirs[name].cider for name in references])
    error = differences.std() / np.sqrt(400)
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(
        (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=0.12 * error
    )


def test_bleu_of_a_draw_is_that_of_the_drawn_corpus() -> None:
    """Of two pictures, captioned right and wrong, a draw has one twice in half of all cases: BLEU 1, 0 or between."""
    references = {"a": [["a", "dog", "runs", "on", "grass"]], "b": [["two", "men", "play", "a", "game"]]}
    candidate = {"a": ["a", "dog", "runs", "on", "grass"], "b": ["x", "x", "x", "x", "x"]}
    nothing = {name: ["y", "y", "y", "y", "y"] for name in references}
    found = compare(candidate, nothing, references, "bleu_4", num_draws=2000)
    assert found.candidate == pytest.approx(0.5)  # half of all n-grams of each order
    assert (found.low, found.high) == (0.0, 1.0)
    assert found.share_better == pytest.approx(0.75, abs=0.03)  # all draws but the wrong picture twice


def test_same_seed_same_interval() -> None:
    (candidate, references), (serving, _) = make(40, 0.3, 1), make(40, 0.5, 2)
    assert compare(candidate, serving, references, seed=5) == compare(candidate, serving, references, seed=5)
    assert compare(candidate, serving, references, seed=5) != compare(candidate, serving, references, seed=6)


def test_other_pictures_are_refused() -> None:
    captions, references = make(5, 0, 1)
    with pytest.raises(CaptionRayError, match=r"1 .000.jpg. without a prediction"):
        compare({name: words for name, words in captions.items() if name != "000.jpg"}, captions, references)
