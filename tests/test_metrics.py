import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

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
    assert metrics["macro_f1"] == pytest.approx(sum(f1s) / len(f1s))


def test_scores_equal_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator)
    targets = torch.randint(5, (200,), generator=generator)  # two classes have no clips
    logits[:, 6] = -10  # and one of them is never predicted
    metrics = classification_metrics(logits, targets)
    assert metrics["accuracy"] == pytest.approx(
        multiclass_accuracy(logits, targets, 7, average="micro").item()
    )
    assert metrics["macro_f1"] == pytest.approx(
        multiclass_f1_score(logits, targets, 7, average="macro").item()
    )
    f1s = multiclass_f1_score(logits, targets, 7, average=None).tolist()
    assert [score.f1 for score in class_scores(logits, targets)] == pytest.approx(f1s)
