import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learn.metrics import (
    UNLABELLED,
    Units,
    bootstrap_interval,
    class_scores,
    estimate,
    json_numbers,
    mcnemar_p,
    measure_classes,
    measure_loss,
    measure_values,
    resample,
)

answers = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


def logits_of(predicted: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), 3).float() * 5


@given(answers)
def test_scores_equal_counting_by_hand(pairs):
    actual, predicted = zip(*pairs, strict=True)
    scores = class_scores(*(np.eye(3, dtype=bool)[list(numbers)] for numbers in (predicted, actual)))
    f1s = []
    for k, score in enumerate(scores):
        hits = sum(a == p == k for a, p in pairs)
        assert score.num_rows == actual.count(k)
        assert score.precision == pytest.approx(hits / max(predicted.count(k), 1))
        assert score.recall == pytest.approx(hits / max(actual.count(k), 1))
        assert score.f1 == pytest.approx(2 * hits / max(actual.count(k) + predicted.count(k), 1))
        if k in actual or k in predicted:
            f1s.append(score.f1)
    metrics = measure_classes(logits_of(predicted), torch.tensor(actual))(np.ones(len(pairs)))
    assert metrics["accuracy"] == pytest.approx(sum(a == p for a, p in pairs) / len(pairs))
    assert metrics["macro_f1"] == pytest.approx(sum(f1s) / len(f1s))


def some_clips(num_clips: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets; two classes have no clips, and one of them is never predicted."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_clips, num_classes, generator=generator)
    logits[:, -1] = -10
    return logits, torch.randint(num_classes - 2, (num_clips,), generator=generator)


def by_torchmetrics(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_average_precision,
        multiclass_calibration_error,
        multiclass_f1_score,
    )

    num_classes = logits.shape[1]
    present = targets.unique()  # torchmetrics warns of the others
    precision = multiclass_average_precision(
        logits.double().softmax(dim=1), targets, num_classes, average=None
    )
    metrics = {
        "accuracy": multiclass_accuracy(logits, targets, num_classes, average="micro"),
        "accuracy_top5": multiclass_accuracy(logits, targets, num_classes, average="micro", top_k=5),
        "macro_f1": multiclass_f1_score(logits, targets, num_classes, average="macro"),
        "ece": multiclass_calibration_error(logits.double(), targets, num_classes, n_bins=15),
        "mAP": precision[present].mean(),
    }
    return {name: value.item() for name, value in metrics.items()}


@pytest.mark.slow
def test_metrics_of_classes_equal_those_of_torchmetrics():
    from torchmetrics.functional.classification import multiclass_f1_score

    logits, targets = some_clips(200, 9)
    metrics = measure_classes(logits, targets)(np.ones(200))
    assert metrics == pytest.approx(by_torchmetrics(logits, targets))
    f1s = multiclass_f1_score(logits, targets, 9, average=None).tolist()
    marks = [np.eye(9, dtype=bool)[numbers.numpy()] for numbers in (logits.argmax(dim=1), targets)]
    scores = class_scores(*marks)
    assert [score.f1 for score in scores] == pytest.approx(f1s)


def test_equal_scores_are_one_step_of_the_precision_curve():
    from torchmetrics.functional.classification import multiclass_average_precision

    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([0, 1, 0, 1])
    metrics = measure_classes(logits, targets)(np.ones(4))
    assert metrics["mAP"] == pytest.approx((2 / 3 + (0.5 + 0.5 * 0.5)) / 2)
    expected = multiclass_average_precision(logits.softmax(dim=1), targets, 2).item()
    assert metrics["mAP"] == pytest.approx(expected)


def test_a_clip_that_counts_twice_is_a_clip_that_is_there_twice():
    logits, targets = some_clips(60, 9)
    counts = np.random.default_rng(0).integers(0, 4, 60)
    repeats = torch.from_numpy(counts)
    repeated = by_torchmetrics(logits.repeat_interleave(repeats, 0), targets.repeat_interleave(repeats))
    assert measure_classes(logits, targets)(counts) == pytest.approx(repeated)


def test_frames_count_as_often_as_their_clip_and_not_without_a_label():
    logits, targets = some_clips(12, 9)
    clips = np.repeat([0, 1, 2], [3, 4, 5])
    targets[[1, 5, 6]] = UNLABELLED
    metrics = measure_classes(logits, targets, clips=clips)(np.array([1, 0, 2]))
    rows = [0, 2, *[7, 8, 9, 10, 11] * 2]
    assert metrics == pytest.approx(by_torchmetrics(logits[rows], targets[rows]))
    nothing = measure_classes(logits, torch.full((12,), UNLABELLED))(np.ones(12))
    assert all(np.isnan(value) for value in nothing.values())
    assert list(nothing) == list(metrics)


def test_top_five_is_measured_where_there_are_more_than_five_classes():
    assert "accuracy_top5" not in measure_classes(torch.rand(3, 5), torch.tensor([0, 1, 2]))(np.ones(3))


@pytest.mark.parametrize("num_values", [1, 3])
def test_metrics_of_values_equal_those_of_torchmetrics(num_values):
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(50, num_values, generator=generator, dtype=torch.float64)
    outputs = targets + torch.randn(50, num_values, generator=generator, dtype=torch.float64) / 2
    counts = np.random.default_rng(0).integers(0, 4, 50)
    metrics = measure_values(outputs, targets)(counts)
    repeated = [values.repeat_interleave(torch.from_numpy(counts), 0) for values in (outputs, targets)]
    columns = [[values[:, i] for values in repeated] for i in range(num_values)]
    expected = {
        "mae": [mean_absolute_error(*column).item() for column in columns],
        "rmse": [mean_squared_error(*column, squared=False).item() for column in columns],
        "r2": [r2_score(*column).item() for column in columns],
    }
    for name, values in expected.items():
        assert metrics[name] == pytest.approx(sum(values) / num_values)
        if num_values > 1:
            assert [metrics[f"{name}_{i}"] for i in (1, 2, 3)] == pytest.approx(values)
    assert len(metrics) == (3 if num_values == 1 else 12)


def test_targets_that_do_not_differ_leave_nothing_to_explain():
    metrics = measure_values(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0]]))(np.ones(2))
    assert metrics == {"mae": 0.5, "rmse": pytest.approx(0.5**0.5), "r2": 0.0}
    targets = torch.full((3, 1), 0.1, dtype=torch.float64)
    metrics = measure_values(targets + 0.01, targets)(np.ones(3))
    assert metrics["r2"] == 0.0  # the mean of three times 0.1 is not 0.1


def test_the_loss_is_a_mean_weighted_by_counts_and_by_weights():
    measure = measure_loss(np.array([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0]), clips=np.array([0, 0, 1]))
    assert measure(np.array([2, 1])) == {"loss": (2 * 5 + 9) / (2 * 3 + 3)}
    assert measure(np.array([0, 0])) == {"loss": 0.0}


def test_the_bootstrap_interval_of_a_share_is_that_of_the_binomial():
    targets = torch.tensor([0] * 80 + [1] * 20)
    measure = measure_classes(torch.tensor([[1.0, 0.0]]).repeat(100, 1), targets)
    draws = resample(measure, units=Units.of([None] * 100), num_resamples=2000, seed=0)["accuracy"]
    assert draws.mean() == pytest.approx(0.8, abs=0.005)
    assert draws.std() == pytest.approx((0.8 * 0.2 / 100) ** 0.5, rel=0.05)
    assert bootstrap_interval(draws) == pytest.approx((0.72, 0.88), abs=0.011)
    again = resample(measure, units=Units.of([None] * 100), num_resamples=2000, seed=0)["accuracy"]
    np.testing.assert_array_equal(again, draws)


def test_units_are_groups_and_clips_without_one_and_are_drawn_as_a_whole():
    units = Units.of(["b", None, "a", "b", "", "a"])
    assert units.places.tolist() == [0, 1, 2, 0, 3, 2]
    assert (units.num_clips, len(units), units.text("val clips")) == (6, 4, "6 val clips in 4 groups")
    rng = np.random.default_rng(5)
    for counts in units.draws(num_resamples=20, seed=5):
        drawn = rng.integers(4, size=4).tolist()
        assert counts.tolist() == [drawn.count(place) for place in (0, 1, 2, 0, 3, 2)]


def test_groups_of_one_clip_each_are_drawn_as_clips_are():
    alone, grouped = (Units.of(groups) for groups in ([None] * 9, list("abcdefghi")))
    pairs = zip(alone.draws(num_resamples=9, seed=0), grouped.draws(num_resamples=9, seed=0), strict=True)
    assert all((first == second).all() for first, second in pairs)
    assert (grouped.noun, grouped.text()) == ("clips", "9")


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (0, 6, 2 / 64), (18, 1, 40 / 2**19), (86, 150, 3.7159361395713866e-05)],
)
def test_the_p_value_of_mcnemars_test_is_that_of_the_binomial(first, second, p):
    # The last one is scipy's binomtest(86, 236): ratings of a prime minister, in Agresti 2002, table 10.1.
    assert mcnemar_p(first, second) == mcnemar_p(second, first) == pytest.approx(p)


def test_resamples_without_a_value_do_not_count():
    assert bootstrap_interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)


def wilson(num_hits: int, num_clips: int) -> tuple[float, float]:
    """The score interval: every share within 1.96 of its own deviations of the one that was seen."""
    z, seen = 1.959963984540054, num_hits / num_clips
    middle = (seen + z**2 / (2 * num_clips)) / (1 + z**2 / num_clips)
    half = z / (1 + z**2 / num_clips) * (seen * (1 - seen) / num_clips + z**2 / (4 * num_clips**2)) ** 0.5
    return middle - half, middle + half


@pytest.mark.parametrize("num_clips", [1, 8, 143])
@pytest.mark.parametrize("right", [False, True])
def test_where_all_resamples_of_a_share_are_equal_its_interval_is_wilsons(num_clips, right):
    logits = torch.tensor([[1.0, 0.0]]).repeat(num_clips, 1)
    measure = measure_classes(logits, torch.full((num_clips,), 0 if right else 1))
    draws = resample(measure, units=Units.of([None] * num_clips), num_resamples=100, seed=0)
    found = estimate("accuracy", float(right), draws["accuracy"], num_units=num_clips)
    assert found.interval == pytest.approx(wilson(num_clips * right, num_clips), abs=1e-12)
    if num_clips == 8:  # statsmodels: proportion_confint(0, 8, method="wilson")
        assert found.interval == pytest.approx((0.675592, 1.0) if right else (0.0, 0.324408), abs=1e-6)
    unknown = estimate("macro_f1", float(right), draws["macro_f1"], num_units=num_clips)
    assert unknown.interval is None


def test_equal_shares_of_each_clips_frames_are_no_certainty_either():
    found = estimate("accuracy", 0.5, np.array([0.5, 0.5 + 1e-15, 0.5]), num_units=8)
    assert found.interval == pytest.approx((0.5 - 0.324408 / 2, 0.5 + 0.324408 / 2), abs=1e-6)


def test_a_difference_that_is_the_same_for_all_clips_has_the_interval_of_its_range():
    share = 3.8414588 / (30 + 3.8414588)  # of clips that may differ, by Wilson
    for value, ends in ((0.0, (-share, share)), (1.0, (1 - 2 * share, 1.0)), (-1.0, (-1.0, -1 + 2 * share))):
        found = estimate("accuracy", value, np.full(9, value), num_units=30, is_difference=True)
        assert found.interval == pytest.approx(ends)


@pytest.mark.parametrize("draws", [[0.7, 0.7, 0.7], [np.nan, 0.7], [np.nan, np.nan]])
def test_an_interval_that_can_not_be_known_is_none(draws):
    assert estimate("loss", 0.7, np.array(draws), num_units=1).interval is None


@pytest.mark.parametrize("name", ["mAP", "mAP_25", "ece"])
def test_draws_of_a_metric_that_they_make_larger_are_mirrored_at_its_value(name):
    draws = np.linspace(0.3, 0.7, 401)
    low, high = bootstrap_interval(draws)
    assert estimate("macro_f1", 0.4, draws, num_units=9).interval == (low, high)
    assert estimate(name, 0.4, draws, num_units=9).interval == pytest.approx((0.8 - high, 0.8 - low))
    assert estimate(name, 0.9, draws + 0.4, num_units=9).high == 1.0
    found = estimate(name, 0.9, draws + 0.4, num_units=9, is_difference=True)
    assert found.interval == pytest.approx((1.4 - high, 1.4 - low))
    assert estimate(name, 0.25, draws, num_units=9).interval is None  # all but some draws are larger


def test_resamples_that_differ_have_the_bootstraps_interval():
    draws = np.array([0.0, 0.25, 0.5, np.nan])
    assert (
        estimate("accuracy", 0.25, draws, num_units=4).interval
        == bootstrap_interval(draws)
        == (0.0125, 0.4875)
    )


def test_json_has_null_where_a_metric_is_not_defined():
    metrics = {"accuracy": 0.5, "mAP": np.nan, "perplexity": np.inf}
    assert json_numbers(metrics) == {"accuracy": 0.5, "mAP": None, "perplexity": None}
