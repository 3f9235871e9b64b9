"""Words, their numbers, and texts made of them again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.vocabulary import (
    END,
    PAD,
    SPECIAL_WORDS,
    UNKNOWN,
    Vocabulary,
    join_words,
    pad_groups,
    pad_words,
    split_words,
)

TEXTS = ["The digit two moves left, then up", "the digit ONE moves up"]


def test_words_are_in_lower_case_and_punctuation_is_a_word():
    assert split_words("It's a top-left move, isn't it?") == [
        *("it's", "a", "top-left", "move", ",", "isn't", "it", "?"),
    ]


def test_words_are_numbered_by_frequency_then_alphabet_after_the_special_ones():
    vocabulary = Vocabulary.from_texts(TEXTS)
    frequent, rare = ["digit", "moves", "the", "up"], [",", "left", "one", "then", "two"]
    assert vocabulary.words == (*SPECIAL_WORDS, *frequent, *rare)
    assert Vocabulary.from_texts(reversed(TEXTS)) == vocabulary


def test_rare_words_are_unknown_and_counted():
    vocabulary = Vocabulary.from_texts(TEXTS, min_count=2)
    assert vocabulary.words == (*SPECIAL_WORDS, "digit", "moves", "the", "up")
    assert vocabulary.encode("the two moves") == [6, UNKNOWN, 5, END]
    assert vocabulary.unknown_words(TEXTS) == {",": 1, "left": 1, "one": 1, "then": 1, "two": 1}


def test_a_text_reads_back_up_to_its_end_and_without_padding():
    vocabulary = Vocabulary.from_texts(TEXTS)
    numbers = vocabulary.encode(TEXTS[0])
    assert numbers[-1] == END
    assert vocabulary.decode([*numbers, PAD, PAD]) == TEXTS[0].lower()
    assert vocabulary.decode([*numbers, 5, 6]) == TEXTS[0].lower()


@given(st.lists(st.from_regex(r"[a-z]+[,.?!]?", fullmatch=True), min_size=1))
def test_joining_words_puts_spaces_where_texts_have_them(words):
    assert join_words(split_words(" ".join(words))) == " ".join(words)


def test_sentences_are_padded_to_the_longest():
    assert pad_words([[7, END], [5, 6, END]]).tolist() == [[7, END, PAD], [5, 6, END]]


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_words_is_an_end(text):
    assert Vocabulary.from_texts(TEXTS).encode(text) == [END]


def test_groups_are_padded_to_the_one_with_most_sentences_and_the_longest_sentence():
    padded = pad_groups([[[7, END]], [[5, 6, END], [END]]])
    assert padded.tolist() == [[[7, END, PAD], [PAD, PAD, PAD]], [[5, 6, END], [END, PAD, PAD]]]
