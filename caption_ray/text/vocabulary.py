"""The words a model knows, and their ids."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from caption_ray.errors import CaptionRayError
from caption_ray.special_ids import END_ID, PAD_ID, START_ID, UNKNOWN_ID

SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """An ordered set of words; a word's id is its place.

    The first four are `SPECIAL_WORDS`; `tokenize` returns none of them. Raises ValueError where they are
    not, or where a word is empty or comes twice.
    """

    words: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.words[: len(SPECIAL_WORDS)] != SPECIAL_WORDS:
            raise ValueError(
                f"a vocabulary begins with {', '.join(SPECIAL_WORDS)}, not {self.words[: len(SPECIAL_WORDS)]}"
            )
        ids = {word: id_ for id_, word in enumerate(self.words)}
        if len(ids) != len(self.words):
            twice = next(word for id_, word in enumerate(self.words) if ids[word] != id_)
            raise ValueError(f"the word {twice!r} comes twice in the vocabulary")
        if "" in ids:
            raise ValueError(f"word {ids['']} of the vocabulary is empty")
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Return the id of each word, UNKNOWN_ID for those not in the vocabulary; adds no START_ID or END_ID."""
        return [self._ids.get(word, UNKNOWN_ID) for word in words]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the words up to the first END_ID, without PAD_ID and START_ID.

        Raises ValueError for an id outside 0 .. len - 1.
        """
        words = []
        for id_ in ids:
            if not 0 <= id_ < len(self.words):
                raise ValueError(f"id {id_} is not in this vocabulary of {len(self.words)} words")
            if id_ == END_ID:
                break
            if id_ not in (PAD_ID, START_ID):
                words.append(self.words[id_])
        return words

    def to_json(self) -> str:
        """Return the content of a `vocabulary.json`, one word a line."""
        return _VocabularyFile(format_version=1, words=self.words).model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "Vocabulary":
        """Read what `to_json` wrote. Raises CaptionRayError, naming the file `where`, for anything else."""
        try:
            return cls(_VocabularyFile.model_validate_json(text).words)
        except ValueError as error:  # pydantic's ValidationError is one too
            raise CaptionRayError(
                f"{where}: not a vocabulary of format version 1 ({error}); prepare the data again"
            ) from error


class _VocabularyFile(BaseModel):
    """What a `vocabulary.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1]
    words: tuple[str, ...]


def build_vocabulary(tokenised: Iterable[Sequence[str]], min_count: int) -> Vocabulary:
    """Return the words seen at least `min_count` times, by falling count, then alphabetically.

    `tokenised` holds the words of each caption, of the training split alone: a vocabulary counted over
    test captions would know words that the model must not.
    """
    counts = Counter(word for words in tokenised for word in words)
    frequent = [word for word, count in counts.items() if count >= min_count]
    return Vocabulary((*SPECIAL_WORDS, *sorted(frequent, key=lambda word: (-counts[word], word))))
