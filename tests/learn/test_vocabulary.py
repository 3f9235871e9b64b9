"""Words, their numbers, and texts made of them again."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpora.digits import DigitsConfig, render_clip
from pipeline.learn.vocabulary import (
    END,
    JOINED,
    PAD,
    SPACE,
    SPECIAL_WORDS,
    UNKNOWN,
    Vocabulary,
    join_words,
    measured_words,
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


# A sentence in each script, in capitals where there are such, and its words, separated by hand.
SENTENCES = {
    "Latin": ("L'été, Zoë saute; «ça va?»", "l'été , zoë saute ; « ça va ? »"),
    "Cyrillic": ("Мальчик прыгает влево — и стоит.", "мальчик прыгает влево — и стоит ."),
    "Greek": ("Η Γάτα τρέχει, ναι;", "η γάτα τρέχει , ναι ;"),
    "Arabic": ("الولدُ يقفز إلى اليسار، ثم يتوقف؟", "الولدُ يقفز إلى اليسار ، ثم يتوقف ؟"),
    "Hebrew": ("הילד קופץ שמאלה, לבית־ספר.", "הילד קופץ שמאלה , לבית־ספר ."),
    "Devanagari": ("लड़का बाईं ओर कूदता है, फिर रुकता है।", "लड़का बाईं ओर कूदता है , फिर रुकता है ।"),
    "Tamil": ("பையன் இடதுபுறம் குதிக்கிறான்.", "பையன் இடதுபுறம் குதிக்கிறான் ."),
    "Thai": ("เด็กวิ่งไปทางซ้าย แล้วหยุด", f"เด็ก วิ่ง ไป ทาง ซ้าย {SPACE} แล้ว หยุด"),
    "Chinese": ("男孩向左跑，然后停下。", "男孩 向左 跑 ， 然后 停下 。"),
    "Japanese": ("男の子が「ボール」を投げる。", "男の子 が 「 ボール 」 を 投げる 。"),
    "Korean": ("소년이 왼쪽으로 뛴다.", "소년이 왼쪽으로 뛴다 ."),
}


def as_joined(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


@pytest.mark.parametrize("script", SENTENCES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_are_whole_in_every_script_and_make_the_text_again(script, form):
    text, words = SENTENCES[script]
    text = unicodedata.normalize(form, text)
    assert split_words(text) == [unicodedata.normalize("NFC", word) for word in words.split()]
    assert join_words(split_words(text)) == as_joined(text)


ORDINARY_WORDS = [
    [word for word in sentence.split() if any(map(str.isalpha, word)) and word != SPACE]
    for _, sentence in SENTENCES.values()
]


@given(
    st.sampled_from(ORDINARY_WORDS).flatmap(lambda words: st.lists(st.sampled_from(words), min_size=1)),
    st.sampled_from([" ", ", ", "; ", ": ", " - ", "-", "/", '", "', "\u3000"]),
    st.sampled_from([".", "?", "!", "...", "", ")"]),
)
def test_a_text_is_the_same_again_in_every_script(words, between, end):
    text = between.join(words) + end
    assert join_words(split_words(text)) == as_joined(text)


@given(st.text())
def test_any_text_is_the_same_again(text):
    assert join_words(split_words(text)) == as_joined(text)
    assert split_words(join_words(split_words(text))) == split_words(as_joined(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3.5 m, 1,000 times", "3.5 m , 1,000 times"),
        ("$5 (50%) #1", "$ 5 ( 50 % ) # 1"),
        ("the 90's: don’t, aujourd'hui", "the 90's : don’t , aujourd'hui"),
        ('he says "go left", and goes', 'he says " go left " , and goes'),
        ("two-year-old and/or three", "two-year-old and / or three"),
        ("👩‍👩‍👧🇩🇪👍🏽", "👩‍👩‍👧 🇩🇪 👍🏽"),
        ("wow😀", "wow 😀"),
    ],
)
def test_numbers_quotes_compounds_and_emoji_are_words_and_need_no_marks_of_spaces(text, words):
    assert split_words(text) == words.split()
    assert join_words(words.split()) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("up , then 10:30", ["up", SPACE, ",", "then", "10", ":", JOINED, "30"]),
        ("left—up", ["left", JOINED, "—", JOINED, "up"]),
    ],
)
def test_unusual_spaces_are_kept_and_not_measured(text, words):
    assert split_words(text) == words
    assert join_words(words) == text
    assert measured_words(text) == [word for word in words if word not in (SPACE, JOINED)]


def test_marks_of_spaces_that_a_vocabulary_does_not_have_are_no_unknown_words():
    vocabulary = Vocabulary.from_texts(TEXTS)
    assert vocabulary.encode("left , up") == vocabulary.encode("left, up")
    assert not vocabulary.unknown_words(["left , up"])


@pytest.mark.slow
def test_texts_of_the_embedded_corpus_have_the_words_between_their_spaces():
    clips = [render_clip(index, config=DigitsConfig())[0] for index in range(50)]
    texts = [
        text for clip in clips for text in (*clip.captions, *(asked.question for asked in clip.questions))
    ]
    assert any("," in text for text in texts)
    for text in texts:
        assert split_words(text) == text.replace(",", " ,").replace("?", " ?").split()
        assert join_words(split_words(text)) == text


def test_sentences_are_padded_to_the_longest():
    assert pad_words([[7, END], [5, 6, END]]).tolist() == [[7, END, PAD], [5, 6, END]]


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_words_is_an_end(text):
    assert Vocabulary.from_texts(TEXTS).encode(text) == [END]


def test_groups_are_padded_to_the_one_with_most_sentences_and_the_longest_sentence():
    padded = pad_groups([[[7, END]], [[5, 6, END], [END]]])
    assert padded.tolist() == [[[7, END, PAD], [PAD, PAD, PAD]], [[5, 6, END], [END, PAD, PAD]]]
