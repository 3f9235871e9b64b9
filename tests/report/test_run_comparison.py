"""Runs beside each other: the table, what may be claimed, what differs, and which runs can't be compared."""

import csv
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import RunError, UnequalClipsError
from pipeline.learn.metrics import mcnemar_p
from pipeline.report.compare_runs import compare_runs
from pipeline.report.run_comparison import Duel, RunComparison
from pipeline.report.runs import Run, differing_settings
from tests.support.runs import answer_table, make_run, right_about, student

GOOD = "1" * 27 + "000"
BAD = "1" * 9 + "0" * 20 + "1"
NUM_RESAMPLES = 200


def compared(*runs: Run, **options: Any) -> RunComparison:
    return compare_runs(runs, num_resamples=NUM_RESAMPLES, **options)


def student_reach(deviations: Any, num_units: int) -> float:
    """How far an interval reaches, by the deviations (R,) of draws from the value of the pair."""
    error = np.std(deviations)
    return float(student(np.quantile(np.abs(deviations), 0.95) / error, num_units) * error)


def test_the_difference_of_two_runs_and_its_interval_are_those_of_a_loop() -> None:
    comparison = compared(right_about("bad", BAD), right_about("good", GOOD))
    good, bad = (np.array(list(map(int, right))) for right in (GOOD, BAD))
    rng = np.random.default_rng(0)
    draws = [rng.integers(30, size=30) for _ in range(NUM_RESAMPLES)]
    deviations = np.array([(bad - good)[draw].mean() - (bad - good).mean() for draw in draws])
    reach = student_reach(deviations, 30)
    low, high = np.percentile([good[draw].mean() for draw in draws], [2.5, 97.5])
    best, other = comparison.rows()
    assert (best["run"], other["run"]) == ("good", "bad")
    assert (best["accuracy"], other["accuracy"]) == (27 / 30, 10 / 30)
    assert (best["low"], best["high"]) == pytest.approx((low, high))
    assert best["loss"] == pytest.approx((27 * 0.1 + 3 * math.log(10)) / 30)
    assert other["difference"] == pytest.approx(-17 / 30)
    assert (other["from"], other["to"]) == pytest.approx((-17 / 30 - reach, -17 / 30 + reach), rel=1e-4)
    assert other["is_distinguishable"] is True
    assert best["difference"] is None


def in_groups(run: Run, size: int) -> Run:
    """The run; so many clips that follow each other are a group."""
    groups = pa.array([f"g{number // size}" for number in range(len(run.predictions))])
    return replace(run, predictions=run.predictions.append_column("group", groups))


def test_clips_of_one_group_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    good, bad = (rng.random((25, 4)) < chance for chance in (0.8, 0.7))
    runs = [
        right_about(name, "".join("01"[int(r)] for r in m.ravel())) for name, m in (("g", good), ("b", bad))
    ]
    comparison = compared(in_groups(runs[0], 4), runs[1])  # one run that knows the groups is enough
    rng = np.random.default_rng(0)
    draws = [rng.integers(25, size=25) for _ in range(NUM_RESAMPLES)]
    difference = (bad.astype(float) - good).mean(axis=1)  # of each group
    deviations = [difference[draw].mean() - difference.mean() for draw in draws]
    reach = student_reach(deviations, 25)
    best, other = comparison.rows()
    assert best["run"] == "g"
    assert (best["low"], best["high"]) == pytest.approx(
        np.percentile([good[draw].mean() for draw in draws], [2.5, 97.5])
    )
    assert (other["from"], other["to"]) == pytest.approx(
        (difference.mean() - reach, difference.mean() + reach), rel=1e-3
    )
    assert comparison.text().startswith("100 test clips in 25 groups  accuracy")
    assert (comparison.as_json()["num_clips"], comparison.as_json()["num_units"]) == (100, 25)
    assert compared(*(in_groups(run, 1) for run in runs)).rows() == compared(*runs).rows()


def over_folds(name: str, *folds: Sequence[np.ndarray], **fields: Any) -> Run:
    """A run; of each fold the answers of its seeds, (N,) bool, about its clips c00, c01, ... in threes."""
    tables = {
        str(number): [
            in_groups(right_about(name, "".join("01"[int(r)] for r in right)), 3).predictions
            for right in fold
        ]
        for number, fold in enumerate(folds, start=1)
    }
    return replace(right_about(name, "1", **fields), predictions=None, folds=tables)


def test_runs_over_folds_are_compared_fold_by_fold_on_draws_of_folds_and_groups() -> None:
    rng = np.random.default_rng(2)
    sizes, num_seeds = (30, 24, 36), 2
    good, bad = (
        [rng.random((num_seeds, size)) < chance for size in sizes] for chance in (0.8, 0.6)
    )  # F times (seeds, N)
    comparison = compared(over_folds("bad", *bad), over_folds("good", *good))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(NUM_RESAMPLES):
        values = []
        for fold in rng.integers(3, size=3):
            groups = rng.integers(sizes[fold] // 3, size=sizes[fold] // 3)
            clips = (groups[:, None] * 3 + np.arange(3)).ravel()
            values.append([np.mean([seed[clips].mean() for seed in run[fold]]) for run in (good, bad)])
        draws.append(np.mean(values, axis=0))
    means = [np.mean([fold.mean() for fold in run]) for run in (good, bad)]
    differences = np.subtract(*np.array(draws).T[::-1])
    difference = means[1] - means[0]
    reach = student_reach(differences - difference, 12)
    best, other = comparison.rows()
    assert [row["accuracy"] for row in (best, other)] == pytest.approx(means)
    assert (best["low"], best["high"]) == pytest.approx(np.percentile([g for g, _ in draws], [2.5, 97.5]))
    assert (other["from"], other["to"]) == pytest.approx((difference - reach, difference + reach), rel=1e-3)
    assert comparison.folds["2"] == pytest.approx((good[1].mean(), bad[1].mean()))
    assert comparison.as_json()["folds"]["3"] == pytest.approx({"good": good[2].mean(), "bad": bad[2].mean()})
    text = comparison.text()
    assert text.startswith("90 test clips of 3 folds in 12 groups")  # groups have the same names in all folds
    assert "\nfold  good    bad\n1     0." in text
    assert "good is better than bad about " in text
    ahead = good[2].mean(axis=0) - bad[2].mean(axis=0)
    assert {clip for clip in comparison.duels()[0].best_ahead if clip.endswith("(fold 3)")} == {
        f"c{number:02} (fold 3)" for number in np.flatnonzero(ahead > 0)
    }


def test_runs_over_other_folds_are_not_compared() -> None:
    fold = [np.ones(20, bool)]
    one, two = over_folds("a", fold), over_folds("b", fold, fold)
    with pytest.raises(RunError, match=r"The folds of a are 1; those of b are 1, 2\."):
        compared(one, two)
    with pytest.raises(RunError, match=r"The folds of a are 1; those of c are none\."):
        compared(one, right_about("c", GOOD))
    with pytest.raises(UnequalClipsError, match=r"only one of them about c19 \(fold 2\)"):
        compared(two, over_folds("c", fold, [np.ones(19, bool)]))
    with pytest.raises(RunError, match="a and b are the same run"):
        compared(one, over_folds("b", fold))


def test_few_groups_have_no_verdict_however_many_clips_they_have() -> None:
    comparison = compared(
        *(in_groups(right_about(name, c * 100), 10) for name, c in (("a", "1"), ("b", "0")))
    )
    assert comparison.claim() == "Too few test groups to tell which run is the best (10; it takes 20)."


def test_the_order_in_which_runs_are_named_changes_nothing() -> None:
    runs = [right_about("a", GOOD), right_about("b", BAD), right_about("c", GOOD[::-1])]
    texts = {compared(*order).text() for order in itertools.permutations(runs)}
    assert len(texts) == 1


def test_the_text_has_the_table_what_may_be_claimed_the_settings_and_the_clips() -> None:
    comparison = compared(
        right_about("small", BAD, settings={"train.hidden_size": 8}), right_about("large", GOOD)
    )
    assert comparison.text() == (
        "30 test clips  accuracy               difference                loss\n"
        "large          0.9000 [0.766, 1.000]  best                      0.3203\n"
        "small          0.3333 [0.167, 0.500]  -0.5667 [-0.781, -0.352]  1.5684\n"
        "\n"
        "By accuracy on clips like these, large is better than small. This is about the trained models: it"
        " does not say what another seed would do.\n"
        "\n"
        "McNemar's exact test of the two: p = 7.6e-05.\n"
        "\n"
        "                   large  small\n"
        "train.hidden_size  64     8\n"
        "\n"
        "large is right and small wrong about 18 clips: c09, c10, c11, c12, c13, c14, c15, c16 and 10 more.\n"
        "small is right and large wrong about 1 clip: c29."
    )


def test_runs_that_clips_do_not_tell_apart_are_not_called_better() -> None:
    best, near, far = right_about("best", GOOD), right_about("near", "0" + GOOD[1:]), right_about("far", BAD)
    assert compared(best, near).claim() == (
        "It is not shown that best is better than near: other clips might turn the two around."
    )
    assert compared(best, near, far).claim() == (
        "By accuracy on clips like these, best is better than far. It is not shown that best is better than"
        " near: other clips might turn the two around. This is about the trained models: it does not say what"
        " another seed would do."
    )


def test_runs_that_differ_in_the_seed_alone_show_chance() -> None:
    comparison = compared(right_about("a", GOOD), right_about("b", BAD, settings={"train.seed": 1}))
    assert comparison.claim() == (
        "By accuracy on clips like these, a is better than b. Only their seeds differ, so any difference is"
        " chance in training."
    )


def test_mcnemars_test_is_of_pairs_of_right_and_wrong_answers_about_independent_clips() -> None:
    runs = [right_about("a", GOOD), right_about("b", BAD), right_about("c", "0" + GOOD[1:])]
    comparison = compared(*runs)
    assert comparison.mcnemar() == (
        "McNemar's exact test against a: p = c 1, b 7.6e-05. Each p is about one pair alone; the intervals of"
        " the differences hold for all pairs together."
    )
    assert [duel.p for duel in comparison.duels()] == [1.0, mcnemar_p(18, 1)]
    assert compared(*(in_groups(run, 3) for run in runs)).mcnemar() == ""
    frames = [
        make_run(name, answer_table(["a", "a", "b"], task="frame_labels", truth=list("xxx"), answer=answer))
        for name, answer in (("m", list("xyx")), ("n", list("yyy")))
    ]
    assert compared(*frames).mcnemar() == ""


def test_few_clips_have_no_verdict() -> None:
    comparison = compared(right_about("a", "1" * 19), right_about("b", "0" * 19))
    assert comparison.claim() == "Too few test clips to tell which run is the best (19; it takes 20)."


@pytest.mark.parametrize(
    ("split", "advice"),
    [
        ("test", "; choose by the val clips, and look at the test clips of the chosen run alone."),
        ("val", "."),
    ],
)
def test_the_best_of_more_than_two_is_said_to_be_chosen(split: str, advice: str) -> None:
    rights = {"a": GOOD, "b": BAD, "c": BAD[::-1]}
    runs = [right_about(name, right, split=split) for name, right in rights.items()]
    assert compared(*runs[:2]).warning() == ""
    comparison = compared(*runs)
    amount = comparison.ranking.optimism
    assert amount >= 0
    assert comparison.warning() == (
        f"a is the best of 3 by {split} accuracy, so this number is too good by about {amount:.4f}{advice}"
    )


def test_an_error_is_better_if_it_is_less() -> None:
    clips = [f"c{number:02}" for number in range(25)]
    truth = [float(number) for number in range(25)]
    near, far = (
        make_run(
            name,
            answer_table(
                clips, task="regression", truth=truth, answer=[t + off for t in truth], value=[1] * 25
            ),
        )
        for name, off in (("near", 0.5), ("far", 2.0))
    )
    comparison = compared(far, near)
    assert [row["rmse"] for row in comparison.rows()] == [0.5, 2.0]
    assert comparison.rows()[1]["difference"] == 1.5
    assert comparison.duels() == [Duel("far", tuple(clips), (), None)]
    assert "near is closer than far about 25 clips: c00, c01, " in comparison.text()


def test_of_several_answers_about_a_clip_the_share_of_right_ones_counts() -> None:
    clips = ["a", "a", "a", "b", "b"]
    columns = {"question": list("pqrpq"), "truth": ["yes"] * 5}
    first, second = (
        make_run(name, answer_table(clips, task="question_answering", answer=answers, **columns))
        for name, answers in (
            ("x", ["yes", "yes", "yes", "no", "no"]),
            ("y", ["no", "no", "yes", "yes", "no"]),
        )
    )
    comparison = compared(first, second)
    assert [row["accuracy"] for row in comparison.rows()] == [0.6, 0.4]
    assert comparison.duels() == [Duel("y", ("a",), ("b",))]
    assert "x has more right answers than y about 1 clip: a." in comparison.text()


def mean_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Of rows (M, K): over the labels that are right somewhere, the mean precision down to each right row."""
    found = []
    for column, right in zip(scores.T, positive.T, strict=True):
        if right.any():
            precisions = [right[column >= score].mean() for score in column[right]]
            found.append(np.mean(precisions))
    return float(np.mean(found))


@pytest.mark.parametrize(("task", "num_frames"), [("multilabel", 1), ("frame_multilabel", 3)])
def test_several_labels_are_ranked_again_in_each_draw_of_the_clips(task: str, num_frames: int) -> None:
    rng = np.random.default_rng(0)
    names, num_rows = ["walk", "talk", "sing", "never"], 30 * num_frames
    positive = rng.random((num_rows, 4)) < [0.5, 0.3, 0.1, 0]
    clips = np.repeat([f"c{number:02}" for number in range(30)], num_frames)
    scores, runs = {}, []
    for name, noise in (("good", 1.5), ("bad", 3.0)):
        scores[name] = ((positive + noise * rng.random((num_rows, 4))) / 4).astype(np.float32).round(2)
        lists = [
            [[names[k] for k in row.nonzero()[0]] for row in marks]
            for marks in (positive, scores[name] > 0.2)
        ]
        columns = {"truth": lists[0], "answer": lists[1], "probabilities": scores[name].tolist()}
        table = answer_table(clips.tolist(), task=task, **columns)
        metadata = {**table.schema.metadata, "classes": json.dumps(names)}
        runs.append(make_run(name, table.replace_schema_metadata(metadata)))
    comparison = compared(*runs)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(NUM_RESAMPLES):
        drawn = rng.integers(30, size=30)
        rows = (drawn[:, None] * num_frames + np.arange(num_frames)).ravel()
        draws.append([mean_average_precision(scores[name][rows], positive[rows]) for name in scores])
    good, bad = np.array(draws).T
    values = [mean_average_precision(scores[name], positive) for name in scores]
    best, other = comparison.rows()
    assert (best["run"], best["mAP"], other["mAP"]) == ("good", *map(pytest.approx, values))
    low, high = (2 * values[0] - end for end in np.percentile(good, [97.5, 2.5]))
    assert (best["low"], best["high"]) == pytest.approx((low, min(1, high)))
    difference = values[1] - values[0]
    reach = student_reach(bad - good - difference, 30)
    assert (other["from"], other["to"]) == pytest.approx((difference - reach, difference + reach), rel=1e-3)
    wrong = {
        name: ((scores[name] > 0.2) != positive).sum(axis=1).reshape(30, -1).mean(axis=1) for name in scores
    }
    ahead = {f"c{number:02}" for number in np.flatnonzero(wrong["good"] < wrong["bad"])}
    assert set(comparison.duels()[0].best_ahead) == ahead
    assert f"good has fewer wrong labels than bad about {len(ahead)} clips: " in comparison.text()


def with_cameras(run: Run) -> Run:
    """The run; of ten clips each the camera is east, unknown and west."""
    cameras = np.repeat(["east", None, "west"], 10).tolist()
    return replace(run, predictions=run.predictions.append_column("meta_camera", pa.array(cameras)))


def test_clips_with_each_value_of_a_column_are_compared_by_themselves() -> None:
    runs = [with_cameras(right_about("good", GOOD)), right_about("bad", BAD)]
    comparison = compared(*runs, by="meta_camera")
    assert compared(*runs).rows() == comparison.rows()
    parts = {"": slice(10, 20), "east": slice(0, 10), "west": slice(20, 30)}
    assert list(comparison.by) == list(parts)
    for value, part in parts.items():
        alone = compared(right_about("good", GOOD[part]), right_about("bad", BAD[part]))
        assert comparison.by[value].rows() == alone.rows()
    lines = comparison.text().splitlines()
    assert [line.split()[:3] for line in lines if line.startswith(("by ", "(empty)", "east", "west"))] == [
        ["by", "meta_camera", "clips"],
        ["(empty)", "10", "good"],
        ["east", "10", "good"],
        ["west", "10", "good"],
    ]
    assert comparison.caution() in lines
    assert comparison.as_json()["by"]["meta_camera"]["west"]["runs"][0]["accuracy"] == 0.7


def test_a_column_that_no_run_has_or_with_too_many_values_groups_nothing() -> None:
    runs = [right_about("a", GOOD), right_about("b", BAD)]
    with pytest.raises(RunError, match=r"no run have the column 'camera'. They have no columns meta_<name>"):
        compared(*runs, by="camera")
    runs[0] = with_cameras(runs[0])
    with pytest.raises(RunError, match=r"no run have the column 'camera'. Columns: meta_camera"):
        compared(*runs, by="camera")
    days = pa.array([f"day {number}" for number in range(30)])
    runs[1] = replace(runs[1], predictions=runs[1].predictions.append_column("meta_day", days))
    with pytest.raises(RunError, match=r"meta_day has 30 values: clips are compared by at most 20\."):
        compared(*runs, by="meta_day")


def test_settings_that_differ_are_named_if_all_runs_have_their_section() -> None:
    first = make_run("a", None, settings={"train.projection": None, "extract.dtype": "float16"})
    second = make_run(
        "b",
        None,
        settings={"train.hidden_size": 128, "code.recurrent": "f" * 16},
        inputs={"manifest": "f" * 16},
    )
    assert differing_settings([first, second]) == {
        "train.hidden_size": ("64", "128"),
        "train.projection": ("null", "-"),
        "code.recurrent": ("01234567", "ffffffff"),
        "digest.manifest": ("abcdef01", "ffffffff"),
    }


def other_truth(name: str) -> Run:
    return make_run(name, answer_table(["c00", "c01"], truth=["yes", "no"], answer=["yes", "yes"]))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([right_about("a", "11")], "Comparing takes at least two runs."),
        ([right_about("a", "11"), right_about("a", "10")], "a is named twice."),
        (
            [right_about("a", "11"), right_about("b", "11")],
            "a and b are the same run: their settings and answers are equal.",
        ),
        ([right_about("a", "11"), make_run("b", None)], "b has no answers to compare."),
        (
            [right_about("a", "11"), right_about("b", "11", task="frame_labels")],
            "The task of a is classification, that of b is frame_labels: they can't be compared.",
        ),
        (
            [right_about("a", "11"), right_about("b", "11", split="val")],
            "a was evaluated on the test clips, b on the val clips.",
        ),
        (
            [right_about("a", "11"), right_about("b", "111")],
            "a was asked about 2 clips, b about 3; only one of them about c02.",
        ),
        (
            [right_about("a", "11"), other_truth("b")],
            "a and b were asked about other frames, or have other right answers, for 1 clip: c01.",
        ),
    ],
)
def test_what_can_not_be_compared_is_said_in_a_sentence(runs: list[Run], message: str) -> None:
    with pytest.raises(RunError) as caught:
        compared(*runs)
    assert str(caught.value) == message


def test_only_with_common_are_clips_left_out_and_their_number_is_said() -> None:
    runs = [right_about("a", "11" + GOOD), right_about("b", "10")]
    with pytest.raises(UnequalClipsError):
        compared(*runs)
    comparison = compared(*runs, common=True)
    assert [row["accuracy"] for row in comparison.rows()] == [1.0, 0.5]
    assert (comparison.num_clips, comparison.num_left_out) == (2, 30)
    said = "\n\n30 clips are left out: not all runs were asked the same about them.\n\n"
    assert said in comparison.text()
    disjoint = make_run("c", answer_table(["x"], truth=["yes"], answer=["yes"]))
    with pytest.raises(RunError, match="There is no clip that all runs were asked the same about"):
        compared(runs[0], disjoint, common=True)


def test_json_and_csv_have_the_rows_and_the_settings(tmp_path: Path) -> None:
    comparison = compared(
        right_about("small", BAD, settings={"train.hidden_size": 8}), right_about("large", GOOD)
    )
    content = comparison.as_json()
    assert content["settings"] == {"train.hidden_size": {"large": "64", "small": "8"}}
    assert (content["metric"], content["split"], content["num_clips"]) == ("accuracy", "test", 30)
    assert [len(content["clips"][0][name]) for name in ("best_ahead", "best_behind")] == [18, 1]
    comparison.write_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["train.hidden_size"], float(row["accuracy"])) for row in rows] == [
        ("large", "64", 27 / 30),
        ("small", "8", 10 / 30),
    ]
    assert float(rows[1]["difference"]) == pytest.approx(content["runs"][1]["difference"])
