"""Vocabulary: texts become words, words become numbers, and back.

Words are those of Unicode (UAX 29), found by ICU: letters with their marks, numbers (3.5, 1,000), emoji; each
punctuation mark is a word. ICU's dictionaries split Thai, Lao, Khmer, Burmese, Chinese and Japanese, which
are written without spaces. Compounds with a hyphen (top-left) are one word.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from pipeline.errors import extra

SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unknown>")
PAD, START, END, UNKNOWN = range(4)  # their numbers in every vocabulary

# Words for a space, or for none, where ordinary text has the contrary. In a text, `<` is a word by itself.
SPACE, JOINED = "<space>", "<joined>"
SPACING = (SPACE, JOINED)

_HYPHENS = "-\u2010\u2011\u05be'’"  # also Hebrew's, and apostrophes beside digits: the 90's
_OPENING, _OPENING_CATEGORIES = "#¿¡", ("Ps", "Pi", "Sc")  # no space after: brackets, quotes, currencies
_CLOSING_CATEGORIES = ("Pe", "Pf", "Po")  # no space before: brackets, quotes, full stops, ...
_BETWEEN_SPACES = "&*@\\§¶†‡•"  # of category Po, but no closing marks
_UNSPACED_SCRIPTS = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")  # and all that are wide, but Hangul


def split_words(text: str) -> list[str]:
    """Split a text into words in NFC and lower case: 'Left, then up' -> left , then up.

    `join_words` restores the text in NFC and lower case, with single spaces. Where spaces differ from those
    of ordinary text, SPACE and JOINED mark them: 'One , 10:30' -> one <space> , 10 : <joined> 30.
    """
    with extra("words", use="Splitting a text into words"):
        from icu4py.breakers import WordBreaker
    words: list[str] = []
    has_space: list[bool] = []  # before each word
    for chunk in unicodedata.normalize("NFC", text).lower().split():
        found = _with_compounds(WordBreaker(chunk, "root"))
        words += found
        has_space += [True] + [False] * (len(found) - 1)
    marked = words[:1]
    for word, has, expected in zip(words[1:], has_space[1:], _expected_spaces(words), strict=True):
        marked += [word] if has == expected else [SPACE if has else JOINED, word]
    return marked


def join_words(words: Iterable[str]) -> str:
    """Join words to a text with the spaces of ordinary text: none before a comma, or between Thai words."""
    words = list(words)
    expected = iter(_expected_spaces([word for word in words if word not in SPACING]))
    text, mark = "", None
    for word in words:
        if word in SPACING:
            mark = word
            continue
        if text:
            space = next(expected)
            text += " " if (space if mark is None else mark == SPACE) else ""
        text, mark = text + word, None
    return text


def measured_words(text: str) -> list[str]:
    """The words that metrics compare: all but the marks of spaces."""
    return [word for word in split_words(text) if word not in SPACING]


def _with_compounds(pieces: Iterable[str]) -> list[str]:
    """The pieces of a text without spaces; words that a hyphen joins become one."""
    words: list[str] = []
    for piece in pieces:
        if len(words) > 1 and words[-1] in _HYPHENS and _is_word(words[-2]) and _is_word(piece):
            words[-2:] = ["".join([*words[-2:], piece])]
        else:
            words.append(piece)
    return words


def _is_word(piece: str) -> bool:
    return unicodedata.category(piece[0])[0] in "LMN"


def _expected_spaces(words: Sequence[str]) -> list[bool]:
    """Whether ordinary text has a space between each word and the next."""
    sides = []  # of each word: whether a space stands before it, and after it
    quoted = False
    for word in words:
        sides.append((not quoted, quoted) if word == '"' else _spaces_around(word[0]))
        quoted ^= word == '"'
    return [left[1] and right[0] for left, right in pairwise(sides)]


def _spaces_around(char: str) -> tuple[bool, bool]:
    category, name = unicodedata.category(char), unicodedata.name(char, "")
    is_wide = unicodedata.east_asian_width(char) in "WF" and not name.startswith("HANGUL")
    if is_wide or char == "/" or category == "So" or name.startswith(_UNSPACED_SCRIPTS):
        return False, False
    is_opening = char in _OPENING or category in _OPENING_CATEGORIES
    is_closing = category in _CLOSING_CATEGORIES and char not in _BETWEEN_SPACES
    return not is_closing or is_opening, not is_opening


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model. A word's number is its place."""

    words: tuple[str, ...]  # SPECIAL_WORDS, then by falling frequency; equally frequent ones by alphabet

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, min_count: int = 1) -> Self:
        """The vocabulary of the words that occur at least `min_count` times."""
        counts = Counter(word for text in texts for word in split_words(text))
        frequent = [word for word, count in counts.items() if count >= min_count]
        return cls((*SPECIAL_WORDS, *sorted(frequent, key=lambda word: (-counts[word], word))))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """The numbers of the text's words, UNKNOWN for words that are not in the vocabulary; then END."""
        return [*(self._numbers.get(word, UNKNOWN) for word in self._words_of(text)), END]

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of word numbers, up to the first END."""
        return join_words(self.words[number] for number in until_end(numbers))

    def unknown_words(self, texts: Iterable[str]) -> Counter[str]:
        """How often each word occurs that is not in the vocabulary."""
        return Counter(word for text in texts for word in self._words_of(text) if word not in self._numbers)

    def _words_of(self, text: str) -> list[str]:
        """The text's words, without marks of spaces that are not in the vocabulary: these mean nothing."""
        return [word for word in split_words(text) if word in self._numbers or word not in SPACING]

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
    """M sentences as (M, S) int64, with PAD after the end of each."""
    longest = max(map(len, sentences))
    return torch.tensor([[*sentence, *[PAD] * (longest - len(sentence))] for sentence in sentences])


def pad_groups(groups: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """B groups of sentences as (B, R, S) int64, with PAD after each sentence and in place of missing ones."""
    most = max(map(len, groups))
    rows = [row for group in groups for row in (*group, *[[PAD]] * (most - len(group)))]
    return pad_words(rows).view(len(groups), most, -1)
