"""Scores of answers in words against torchmetrics, and against the scores that others published."""

import unicodedata

import numpy as np
import pytest

from pipeline.learn.metrics.text import cider_scores, measure_texts, measure_word_errors
from pipeline.learn.vocabulary import measured_words

# The example of aac-metrics' README, after its tokenizer (which drops punctuation), and its scores.
ANSWERS = ["a man is speaking", "rain falls"]
REFERENCES = [
    ["a man speaks", "someone speaks", "a man is speaking while a bird is chirping in the background"],
    ["rain is falling hard on a surface"],
]


def metrics_of(answers: list[str], references: list[list[str]]) -> dict[str, float]:
    return measure_texts(answers, references)(np.ones(len(answers)))


def random_texts(num_clips: int, *, seed: int) -> tuple[list[str], list[list[str]]]:
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(rng.choice(["the", "a", "digit", "two", "moves", "left", "up"], rng.integers(1, 9)))

    return [text() for _ in range(num_clips)], [
        [text() for _ in range(rng.integers(1, 4))] for _ in range(num_clips)
    ]


def scores_of(answers: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D of texts."""
    return cider_scores(
        [measured_words(text) for text in answers],
        [[measured_words(text) for text in texts] for texts in references],
    )


def test_cider_equals_the_published_example():
    assert scores_of(ANSWERS, REFERENCES) == pytest.approx([1.3641, 0.5587], abs=5e-5)
    assert metrics_of(ANSWERS, REFERENCES)["cider"] == pytest.approx(0.9614, abs=5e-5)


def test_cider_equals_the_scorer_of_coco():
    """Scores of pycocoevalcap 1.2's CiderScorer: repeated n-grams are clipped, lengths are damped."""
    answers = ["the two moves left left left", "the digit one moves up , then down", "a seven", "six"]
    references = [
        ["the digit two moves left", "the two moves left , then right"],
        ["the digit one moves up , then down"],
        ["the digit nine moves down", "a seven moves"],
        ["the digit six moves right"],
    ]
    assert scores_of(answers, references) == pytest.approx(
        [3.432580083641, 10.0, 2.10445107081, 1.790503265049]
    )


def test_bleu_equals_the_published_examples():
    assert metrics_of(ANSWERS, REFERENCES)["bleu_1"] == pytest.approx(0.4278, abs=5e-5)  # aac-metrics' README
    answer = "It is a guide to action which ensures that the military always obeys the commands of the party"
    references = [  # candidate 1 of Papineni et al. 2002, and its BLEU in NLTK's documentation
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of"
        " the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    metrics = metrics_of([answer], [references])
    assert metrics["bleu_4"] == pytest.approx(0.5046, abs=5e-5)
    assert metrics["bleu_1"] == pytest.approx(17 / 18)


def test_bleu_clips_counts_as_in_example_2_of_papineni():
    references = ["The cat is on the mat", "There is a cat on the mat"]
    assert metrics_of(["the the the the the the the"], [references])["bleu_1"] == pytest.approx(2 / 7)


@pytest.mark.parametrize(
    ("answer", "score"), [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)]
)
def test_rouge_l_equals_the_example_of_lin(answer, score):
    assert metrics_of([answer], [["police killed the gunman"]])["rouge_l"] == pytest.approx(score)


def test_the_word_error_rate_equals_torchmetrics():
    from torchmetrics.functional.text import word_error_rate

    answers = ["a b c", "", "a a", "c b a", "b"]
    references = ["a c", "b c", "a a", "a b", "a b c a"]
    measured = measure_word_errors(answers, [(text,) for text in references])
    expected = word_error_rate(answers, references).item()
    assert measured(np.ones(5))["word_error_rate"] == pytest.approx(expected)
    chosen = [0, 0, 3, 4]
    expected = word_error_rate([answers[n] for n in chosen], [references[n] for n in chosen]).item()
    assert measured(np.bincount(chosen))["word_error_rate"] == pytest.approx(expected)
    # Of several references, the one with the smallest share of errors: one in four, not one in one.
    assert measure_word_errors(["a b c"], [("d", "a b c d")])(np.ones(1))["word_error_rate"] == 1 / 4


def test_bleu_and_rouge_equal_torchmetrics():
    from torchmetrics.functional.text import bleu_score, rouge_score

    answers, references = random_texts(50, seed=0)
    metrics = metrics_of(answers, references)
    for order in (1, 2, 3, 4):
        expected = float(bleu_score(answers, references, n_gram=order))
        assert metrics[f"bleu_{order}"] == pytest.approx(expected, rel=1e-5)
    rouge = rouge_score(answers, references, accumulate="best", rouge_keys="rougeL")
    assert metrics["rouge_l"] == pytest.approx(float(rouge["rougeL_fmeasure"]), rel=1e-5)


def test_a_clip_that_counts_twice_is_a_clip_that_is_there_twice():
    answers, references = random_texts(6, seed=1)
    rows = [0, 0, 2, 5, 5, 5]
    counted = measure_texts(answers, references)(np.bincount(rows))
    repeated = metrics_of([answers[row] for row in rows], [references[row] for row in rows])
    for name in counted.keys() - {"cider"}:  # its idf stays that of all references
        assert counted[name] == pytest.approx(repeated[name])
    assert counted["cider"] == pytest.approx(np.mean([scores_of(answers, references)[row] for row in rows]))


def test_exact_match_counts_answers_that_are_one_of_the_references():
    references = [["the one moves up", "one, up"], ["two"], ["three"], ["four"]]
    answers = ["One , up", "the two", "three", ""]
    assert metrics_of(answers, references)["exact_match"] == 2 / 4


# Captions, and their words separated by hand.
UNSPACED_OR_MARKED = [
    ("लड़का बाईं ओर कूदता है", "लड़का बाईं ओर कूदता है"),
    ("लड़की बाईं ओर कूदती है", "लड़की बाईं ओर कूदती है"),
    ("लड़का नीचे गिरता है", "लड़का नीचे गिरता है"),
    ("เด็กวิ่งไปทางซ้าย", "เด็ก วิ่ง ไป ทาง ซ้าย"),
    ("เด็กเดินไปทางซ้าย แล้วหยุด", "เด็ก เดิน ไป ทาง ซ้าย แล้ว หยุด"),
    ("男孩向左跑", "男孩 向左 跑"),
]


def test_metrics_of_all_scripts_are_of_whole_words():
    from torchmetrics.functional.text import bleu_score

    texts, by_hand = zip(*UNSPACED_OR_MARKED, strict=True)
    answers, references = list(texts[:-1]), [[text] for text in texts[1:]]
    spaced_answers, spaced_references = list(by_hand[:-1]), [[text] for text in by_hand[1:]]
    metrics = metrics_of(answers, references)
    for order in (1, 2):
        expected = float(bleu_score(spaced_answers, spaced_references, n_gram=order))
        assert expected > 0
        assert metrics[f"bleu_{order}"] == pytest.approx(expected, rel=1e-5)
    places = [3 / 5, 0, 0, 4 / 7, 0]  # words that are equal, of the longer one's
    assert metrics["token_accuracy"] == pytest.approx(np.mean(places))
    longest_common = [2 * 3 / 10, 2 * 1 / 9, 0, 2 * 4 / 12, 0]
    assert metrics["rouge_l"] == pytest.approx(np.mean(longest_common))


def test_a_letter_written_in_two_ways_is_the_same_word():
    answer, reference = "un été à Zürich", unicodedata.normalize("NFD", "Un été à Zürich")
    assert metrics_of([answer], [[reference]])["exact_match"] == 1


def test_token_accuracy_counts_places_and_missing_or_surplus_words_are_errors():
    references = [["a b c d"], ["a b"], ["a b c", "b c"], ["a"]]
    answers = ["a x c", "a b c d", "b c", ""]
    assert metrics_of(answers, references)["token_accuracy"] == pytest.approx((2 / 4 + 2 / 4 + 1 + 0) / 4)


def test_right_answers_score_one_and_silence_scores_nothing():
    answers = ["the digit one moves up", "the digit two moves left", "a seven moves right"]
    references = [[answer] for answer in answers]
    metrics = metrics_of(answers, references)
    assert metrics.pop("cider") == pytest.approx(10)
    assert metrics == pytest.approx(dict.fromkeys(metrics, 1.0))
    assert set(metrics_of(["", "", ""], references).values()) == {0.0}
