"""Vocabulary: texts become words, words become numbers, and back."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unknown>")
PAD, START, END, UNKNOWN = range(4)  # their numbers in every vocabulary

_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_NO_SPACE_BEFORE = re.compile(r" ([,.;:!?%)\]}])")


def split_words(text: str) -> list[str]:
    """Words in lower case; every punctuation mark is a word: 'Left, then up' -> left , then up."""
    return _WORD.findall(text.lower())


def join_words(words: Iterable[str]) -> str:
    """Words as a text, without a space before a closing punctuation mark."""
    return _NO_SPACE_BEFORE.sub(r"\1", " ".join(words))


@dataclass(frozen=True)
class Vocabulary:
    """The words that a model knows. A word's number is its place."""

    words: tuple[str, ...]  # SPECIAL_WORDS, then from the most frequent to the rarest, equals by alphabet

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, min_count: int = 1) -> Self:
        """The words that occur at least `min_count` times."""
        counts = Counter(word for text in texts for word in split_words(text))
        frequent = [word for word, count in counts.items() if count >= min_count]
        return cls((*SPECIAL_WORDS, *sorted(frequent, key=lambda word: (-counts[word], word))))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """The numbers of the text's words, UNKNOWN for those that the vocabulary does not have; then END."""
        return [*(self._numbers.get(word, UNKNOWN) for word in split_words(text)), END]

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of word numbers, up to the first END."""
        return join_words(self.words[number] for number in until_end(numbers))

    def unknown_words(self, texts: Iterable[str]) -> Counter[str]:
        """How often each word that the vocabulary does not have occurs."""
        return Counter(word for text in texts for word in split_words(text) if word not in self._numbers)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def until_end(numbers: Iterable[int]) -> list[int]:
    """The numbers before the first END, without padding."""
    words: list[int] = []
    for number in numbers:
        if number == END:
            break
        if number != PAD:
            words.append(number)
    return words


def pad_words(sentences: Sequence[Sequence[int]]) -> Tensor:
    """Sentences of M different lengths as (M, S) int64, PAD after each end."""
    longest = max(map(len, sentences))
    return torch.tensor([[*sentence, *[PAD] * (longest - len(sentence))] for sentence in sentences])


def pad_groups(groups: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Sentences of B groups as (B, R, S) int64; PAD after each end and where a group has fewer."""
    most = max(map(len, groups))
    rows = [row for group in groups for row in (*group, *[[PAD]] * (most - len(group)))]
    return pad_words(rows).view(len(groups), most, -1)
