from trials import SPACE, TRIALS, settings, trial

from caption_ray.tune.table import live_table, markdown, rank, summary, winner


def test_trials_are_ranked_by_their_best_epoch() -> None:
    standings = rank(TRIALS, "cider", settings())
    assert [(one.place, one.record.number, one.score, one.best_epoch) for one in standings] == [
        (1, 6, 0.41, 2), (2, 2, 0.40, 4), (3, 1, 0.30, 3), (4, 5, 0.12, 1), (5, 3, 0.06, 2), (6, 4, None, None),
    ]  # fmt: skip
    assert [one.record.number for one in standings if one.is_preset] == [1]


def test_of_trials_with_equal_scores_the_first_number_is_ranked_first() -> None:
    equal = [trial(5), trial(3, 0.2), trial(4), trial(1, 0.2), trial(2, 0.3)]
    assert [one.record.number for one in rank(equal, "cider", {})] == [2, 1, 3, 4, 5]


def test_winner_is_the_best_of_those_that_are_over() -> None:
    best = winner(rank(TRIALS, "cider", {}))
    assert best is not None
    assert best.record.number == 2
    assert winner(rank([trial(1, status="failed")], "cider", {})) is None
    assert winner([]) is None


def test_summary_counts() -> None:
    assert summary("s", TRIALS, 12, "cider") == (
        "sweep s: 2 finished, 2 stopped early, 1 failed, 1 running, of 12 trials; best cider 0.410"
    )
    assert summary("s", [], 12, "cider").endswith("of 12 trials; no score yet")
    failed = trial(9, 0.9, status="failed")  # it cannot win
    assert summary("s", [*TRIALS, failed], 12, "cider").endswith("; best cider 0.410")


def test_table_in_the_terminal() -> None:
    lines = live_table(rank(TRIALS, "cider", settings()), "cider", SPACE.searched).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "place trial status epoch best cider now embedding attention learning rate dropout",
        "1 6 running 2 0.410 0.410 200 64 0.001 0.3",
        "2 2 finished 4 0.400 0.400 200 64 0.002 0.4",
        "3 1 (preset) finished 4 0.300 0.280 200 64 0.001 0.4",
        "4 5 stopped 1 0.120 0.120 200 64 0.001 0.6",
        "5 3 stopped 2 0.060 0.060 400 64 0.01 0.4",
        "6 4 failed - - - 200 128 0.01 0.4",
    ]
    assert len({len(line) for line in lines}) == 1


def test_table_of_many_trials_has_the_best_and_those_that_run() -> None:
    many = [trial(number, 1 / number) for number in range(1, 40)] + [trial(40, 0.001, status="running")]
    lines = live_table(rank(many, "cider", {}), "cider", SPACE.searched).splitlines()
    assert [int(line.split()[1]) for line in lines[1:]] == [*range(1, 16), 40]


def test_leaderboard_in_markdown() -> None:
    lines = markdown(rank(TRIALS[:3], "cider", settings()), "cider", SPACE.searched).splitlines()
    assert lines == [
        "|  | Trial | CIDEr | BLEU-4 | Best epoch | Epochs | Ended | Embedding | Attention | Learning rate | Dropout |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "| 1 | 2 | 0.400 | 0.133 | 4 | 4 | by itself | 200 | 64 | 0.002 | 0.4 |",
        "| **2** | **1 (preset)** | **0.300** | **0.100** | **3** | **4** | **by itself** "
        "| **200** | **64** | **0.001** | **0.4** |",
        "| 3 | 3 | 0.060 | 0.020 | 2 | 2 | early | 400 | 64 | 0.01 | 0.4 |",
    ]
