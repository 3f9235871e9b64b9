"""Text metrics: answers in words, compared with references.

They are counted clip by clip, so that bootstrap resamples cost nothing, and compared in the tests with
torchmetrics, COCO's own code and published examples. METEOR is left out: its reference implementation is
Java, and NLTK's downloads WordNet. Words are those of `measured_words`, punctuation included, which COCO's
tokenizer drops.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.learn.metrics.intervals import Measure
from pipeline.learn.metrics.segments import edit_distance
from pipeline.learn.vocabulary import measured_words

Words = list[str]
Ngrams = Counter[tuple[str, ...]]

_ORDERS = (1, 2, 3, 4)
_CIDER_SIGMA = 6.0


def measure_texts(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Metrics of N answers, each with its references.

    - `exact_match`: the share of answers that equal one of their references, word for word.
    - `token_accuracy`: the mean share of places with the right word, by the best reference; a place that
      only the answer or only the reference has is wrong.
    - `bleu_1` to `bleu_4`: of the corpus, not smoothed (Papineni et al. 2002).
    - `rouge_l`: the mean F1 of the longest common subsequence with the best reference (Lin 2004).
    - `cider`: see `cider_scores`.
    """
    ours = [measured_words(answer) for answer in answers]
    theirs = [[measured_words(text) for text in texts] for texts in references]
    pairs = list(zip(ours, theirs, strict=True))
    means = {
        "exact_match": np.array([answer in texts for answer, texts in pairs]),
        "token_accuracy": np.array(
            [max(_same_places(answer, text) for text in texts) for answer, texts in pairs]
        ),
        "rouge_l": np.array([max(_rouge_l(answer, text) for text in texts) for answer, texts in pairs]),
        "cider": np.array(cider_scores(ours, theirs)),
    }
    bleu_counts = np.array([_bleu_counts(answer, texts) for answer, texts in pairs])  # (N, 10)

    def count_texts(counts: np.ndarray) -> dict[str, float]:
        bleu = _bleu((counts[:, None] * bleu_counts).sum(axis=0))
        return {
            **{name: float(np.average(values, weights=counts)) for name, values in means.items()},
            **{f"bleu_{order}": value for order, value in zip(_ORDERS, bleu, strict=True)},
        }

    return count_texts


def measure_word_errors(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """`word_error_rate` and `exact_match` of N answers, each with its references.

    The word error rate is the number of words that must be inserted, deleted or replaced to make the answers
    right, divided by the number of words of the references: 0 is perfect, and it may be above 1. Of several
    references of an answer, the one with the smallest share of errors counts.
    """
    errors, lengths = count_word_errors(answers, references)

    def count_errors(counts: np.ndarray) -> dict[str, float]:
        total = float(counts @ lengths)
        return {
            "word_error_rate": float(counts @ errors) / total if total else math.nan,
            "exact_match": float(np.average(errors == 0, weights=counts)),
        }

    return count_errors


def count_word_errors(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """The wrong words (N,) of `measure_word_errors`, and the words (N,) of the references that count."""
    pairs = zip(answers, references, strict=True)
    counts = np.array([_fewest_errors(answer, texts) for answer, texts in pairs], dtype=float)
    return counts[:, 0], counts[:, 1]


def _fewest_errors(answer: str, references: Sequence[str]) -> tuple[int, int]:
    """The number of wrong words of an answer, and the number of words of the reference that counts."""
    said, counts = measured_words(answer), []
    for right in map(measured_words, references):
        _, numbers = np.unique([*said, *right], return_inverse=True)
        counts.append((edit_distance(numbers[: len(said)], numbers[len(said) :]), len(right)))
    return min(counts, key=lambda count: count[0] / max(count[1], 1))


def cider_scores(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Each answer's CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 7), which COCO calls CIDEr.

    Ten times the mean over references and n (1 to 4) of the clipped cosine of tf-idf vectors of n-grams,
    damped by the difference in length. As in COCO's code that length is the number of word pairs, and the
    idf counts clips among these references: a corpus of one clip, or of equal references, scores 0.
    """
    answer_ngrams = [_ngrams(words) for words in answers]
    reference_ngrams = [[_ngrams(words) for words in texts] for texts in references]
    num_clips_with = Counter(ngram for texts in reference_ngrams for ngram in set().union(*texts))
    num_clips = len(answers)

    def weigh(ngrams: Ngrams) -> dict[tuple[str, ...], float]:
        return {
            ngram: count * math.log(num_clips / max(1, num_clips_with[ngram]))
            for ngram, count in ngrams.items()
        }

    def similarity(answer: Ngrams, reference: Ngrams) -> float:
        ours, theirs = weigh(answer), weigh(reference)
        cosines = []
        for order in _ORDERS:
            overlap = sum(
                min(weight, theirs[ngram]) * theirs[ngram]
                for ngram, weight in ours.items()
                if len(ngram) == order and ngram in theirs
            )
            norms = math.prod(
                math.hypot(*(weight for ngram, weight in weights.items() if len(ngram) == order))
                for weights in (ours, theirs)
            )
            cosines.append(overlap / norms if norms else 0.0)
        difference = _num_pairs(answer) - _num_pairs(reference)
        return math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2)) * sum(cosines) / len(cosines)

    return [
        10 * sum(similarity(answer, text) for text in texts) / len(texts)
        for answer, texts in zip(answer_ngrams, reference_ngrams, strict=True)
    ]


def _same_places(answer: Words, reference: Words) -> float:
    same = sum(one == other for one, other in zip(answer, reference, strict=False))
    return same / max(len(answer), len(reference), 1)


def _rouge_l(answer: Words, reference: Words) -> float:
    common = [0] * (len(reference) + 1)  # longest common subsequence with each beginning of the reference
    for word in answer:
        before = common.copy()
        for place, other in enumerate(reference):
            common[place + 1] = before[place] + 1 if word == other else max(before[place + 1], common[place])
    return 2 * common[-1] / max(len(answer) + len(reference), 1)


def _bleu_counts(answer: Words, references: Sequence[Words]) -> list[int]:
    """Ten counts, to be summed over clips: matching n-grams, all n-grams, lengths of answer and reference.

    The reference is the one whose length is closest to the answer's.
    """
    ours = _ngrams(answer)
    most: Ngrams = Counter()
    for reference in references:
        most |= _ngrams(reference)
    matching, possible = (
        [sum(count for ngram, count in ngrams.items() if len(ngram) == order) for order in _ORDERS]
        for ngrams in (ours & most, ours)
    )
    closest = min((len(text) for text in references), key=lambda length: (abs(length - len(answer)), length))
    return [*matching, *possible, len(answer), closest]


def _bleu(counts: np.ndarray) -> list[float]:
    """BLEU-1 to BLEU-4 from the sum of all clips' counts (10,)."""
    matching, possible, (length, reference_length) = counts[:4], counts[4:8], counts[8:]
    if not length:
        return [0.0] * len(_ORDERS)
    brevity = min(1.0, math.exp(1 - reference_length / length))
    with np.errstate(divide="ignore"):
        logs = np.log(matching / np.maximum(possible, 1))
    return [brevity * math.exp(logs[:order].mean()) for order in _ORDERS]


def _ngrams(words: Words) -> Ngrams:
    return Counter(
        tuple(words[first : first + order]) for order in _ORDERS for first in range(len(words) - order + 1)
    )


def _num_pairs(ngrams: Ngrams) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
