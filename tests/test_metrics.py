import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import class_scores, classification_metrics

answers = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


def logits_of(predicted: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), 3).float() * 5


@given(answers)
def test_scores_equal_counting_by_hand(pairs):
    actual, predicted = zip(*pairs, strict=True)
    scores = class_scores(logits_of(predicted), torch.tensor(actual))
    f1s = []
    for k, score in enumerate(scores):
        hits = sum(a == p == k for a, p in pairs)
        assert score.num_clips == actual.count(k)
        assert score.precision == pytest.approx(hits / max(predicted.count(k), 1))
        assert score.recall == pytest.approx(hits / max(actual.count(k), 1))
        assert score.f1 == pytest.approx(2 * hits / max(actual.count(k) + predicted.count(k), 1))
        if k in actual or k in predicted:
            f1s.append(score.f1)
    metrics = classification_metrics(logits_of(predicted), torch.tensor(actual))
    assert metrics["accuracy"] == pytest.approx(sum(a == p for a, p in pairs) / len(pairs))
    assert metrics["macro_f1"] == pytest.approx(sum(f1s) / len(f1s), abs=1e-6)
