import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_ray.errors import CaptionRayError
from caption_ray.special_ids import END_ID, PAD_ID, START_ID, UNKNOWN_ID
from caption_ray.text.vocabulary import (
    SPECIAL_WORDS,
    Vocabulary,
    build_vocabulary,
)

CAPTIONS = [["a", "dog", "runs"], ["a", "cat", "runs"], ["a", "dog", "sits"]]


def test_words_are_ordered_by_count_then_alphabetically() -> None:
    # a 3, dog 2, runs 2, cat 1, sits 1
    assert build_vocabulary(CAPTIONS, min_count=1).words[4:] == ("a", "dog", "runs", "cat", "sits")
    assert build_vocabulary(CAPTIONS, min_count=2).words[4:] == ("a", "dog", "runs")
    assert build_vocabulary(CAPTIONS, min_count=4).words == SPECIAL_WORDS


@settings(deadline=None)
@given(st.permutations(CAPTIONS))
def test_the_order_of_captions_does_not_matter(captions: list[list[str]]) -> None:
    assert build_vocabulary(captions, 1) == build_vocabulary(CAPTIONS, 1)


def test_special_ids() -> None:
    vocabulary = build_vocabulary([], min_count=1)
    assert len(vocabulary) == 4
    assert [vocabulary.words[id_] for id_ in (PAD_ID, START_ID, END_ID, UNKNOWN_ID)] == list(SPECIAL_WORDS)


def test_encode_gives_unknown_for_other_words() -> None:
    vocabulary = build_vocabulary(CAPTIONS, min_count=2)
    assert vocabulary.encode(["a", "cat", "runs"]) == [4, UNKNOWN_ID, 6]
    assert vocabulary.encode([]) == []


def test_decode_stops_at_the_end_and_skips_padding_and_start() -> None:
    vocabulary = build_vocabulary(CAPTIONS, min_count=2)
    assert vocabulary.decode([START_ID, 4, PAD_ID, UNKNOWN_ID, 5, END_ID, 6, 999]) == ["a", "<unk>", "dog"]


@pytest.mark.parametrize("id_", [-1, 7])
def test_decode_refuses_ids_outside(id_: int) -> None:
    with pytest.raises(ValueError, match=f"id {id_} is not in this vocabulary of 7 words"):
        build_vocabulary(CAPTIONS, min_count=2).decode([4, id_])


def test_decode_undoes_encode() -> None:
    vocabulary = build_vocabulary(CAPTIONS, min_count=1)
    for words in CAPTIONS:
        assert vocabulary.decode(vocabulary.encode(words)) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "dog"), "begins with <pad>"),
        (("<start>", "<pad>", "<end>", "<unk>"), "begins with <pad>"),
        ((*SPECIAL_WORDS, "dog", "a", "dog"), "'dog' comes twice"),
        ((*SPECIAL_WORDS, "<pad>"), "'<pad>' comes twice"),
        ((*SPECIAL_WORDS, "dog", ""), "word 5 of the vocabulary is empty"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


def test_the_file_keeps_all_and_carries_its_version() -> None:
    vocabulary = build_vocabulary([["caf\u00e9", "dog's", "\u732b"]], min_count=1)
    text = vocabulary.to_json()
    assert json.loads(text) == {"format_version": 1, "words": list(vocabulary.words)}
    assert "caf\u00e9" in text
    assert Vocabulary.from_json(text, "vocabulary.json") == vocabulary


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"words": ["<pad>", "<start>", "<end>", "<unk>"]}',
        '{"format_version": 2, "words": ["<pad>", "<start>", "<end>", "<unk>"]}',
        '{"format_version": 1, "words": ["<pad>", "<start>", "<end>", "<unk>", 7]}',
        '{"format_version": 1, "words": ["<pad>", "<start>", "<end>", "<unk>", "a", "a"]}',
        '{"format_version": 1, "words": ["<pad>", "<start>", "<end>", "<unk>"], "more": 1}',
        '{"format_version": 1, "words": ["a"]}',
    ],
)
def test_a_wrong_file_is_named(text: str) -> None:
    with pytest.raises(CaptionRayError, match=r"^data/vocabulary\.json: not a vocabulary of format version 1"):
        Vocabulary.from_json(text, "data/vocabulary.json")
