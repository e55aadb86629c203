"""From a caption to its words: the one definition for vocabulary, training targets and scores."""

import re
import unicodedata
from functools import lru_cache

# Spellings of the apostrophe and the hyphen that mean the same; a soft hyphen is a hint to the typesetter.
_ONE_SPELLING = str.maketrans({"\u2019": "'", "\u02bc": "'", "\u2010": "-", "\u2011": "-", "\u00ad": None})

# Over shapes, not characters: `re` has no class for combining marks, which belong to the letter before them.
_WORD = re.compile(r"w[wm]*(?:[-']w[wm]*)*")
_ASCII_WORD = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*")


def tokenize(caption: str) -> list[str]:
    """Return a caption's words, lower-cased and without punctuation; none where it holds no letter or digit.

    Apostrophes and hyphens stay inside a word (`dog's`, `t-shirt`) and go at its ends. Text is normalised
    to NFKC, so full-width letters and ligatures equal the plain ones. Applied to its own output joined by
    spaces, it returns the same words.
    """
    if caption.isascii():  # nothing to normalise, and letters are their own shapes: ten times as fast
        return _ASCII_WORD.findall(caption.lower())
    return _tokenize_any(caption)


def _tokenize_any(caption: str) -> list[str]:
    text = unicodedata.normalize("NFKC", caption).translate(_ONE_SPELLING).lower()
    # Dropping soft hyphens and lowering can leave pairs that have a composed form.
    text = unicodedata.normalize("NFKC", text)
    shapes = "".join(map(_shape, text))
    return [text[word.start() : word.end()] for word in _WORD.finditer(shapes)]


@lru_cache(maxsize=4096)
def _shape(character: str) -> str:
    """Return `w` for a letter or digit, `m` for a combining mark, `'` and `-` as they are, else a space."""
    if character.isalnum():
        return "w"
    if character in "'-":
        return character
    return "m" if unicodedata.category(character).startswith("M") else " "
