import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_ray.text.tokenizer import _tokenize_any, tokenize


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A black dog and a tri-colored dog .", ["a", "black", "dog", "and", "a", "tri-colored", "dog"]),
        ("The dog's T-shirt, No. 7!", ["the", "dog's", "t-shirt", "no", "7"]),
        ("the dogs' toys - 'quoted' -- rock'n'roll", ["the", "dogs", "toys", "quoted", "rock'n'roll"]),
        ("3.5 metres,two_men", ["3", "5", "metres", "two", "men"]),
        ("dog\u2019s black\u2010and\u2011white foot\u00adball", ["dog's", "black-and-white", "football"]),
        ("\uff24\uff4f\uff47 \ufb01sh", ["dog", "fish"]),
        ("Cafe\u0301 CAF\u00c9", ["caf\u00e9", "caf\u00e9"]),
        ("x\u0302y \u2764\ufe0fdog", ["x\u0302y", "dog"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        (" . - ' \n\t", []),
        ("", []),
    ],
)
def test_words(caption: str, words: list[str]) -> None:
    assert tokenize(caption) == words


@settings(deadline=None)
@given(st.text())
def test_tokenizing_again_changes_nothing(caption: str) -> None:
    words = tokenize(caption)
    assert tokenize(" ".join(words)) == words


@settings(deadline=None)
@given(st.text(alphabet="aB1'-\u2019\u00ad\u0301\u0130\u0149\u03a3 .", max_size=12))
def test_tokenizing_again_changes_nothing_around_connectors_and_marks(caption: str) -> None:
    words = tokenize(caption)
    assert tokenize(" ".join(words)) == words


def test_tokenizing_again_changes_nothing_for_any_character_that_folds_or_combines() -> None:
    checked = 0
    for character in map(chr, range(sys.maxunicode + 1)):
        folds = unicodedata.normalize("NFKC", character).lower() != character
        if folds or unicodedata.category(character).startswith("M"):
            words = tokenize(f"A{character}B")
            assert tokenize(" ".join(words)) == words, hex(ord(character))
            checked += 1
    assert checked > 5_000


@settings(deadline=None)
@given(st.text())
def test_words_hold_a_letter_or_digit_and_no_space(caption: str) -> None:
    for word in tokenize(caption):
        assert word[0].isalnum()
        assert word.split() == [word]
        assert word[-1] not in "'-"


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_ascii_takes_a_shorter_way_to_the_same_words(caption: str) -> None:
    assert tokenize(caption) == _tokenize_any(caption)
