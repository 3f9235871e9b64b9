"""reports/predictions.parquet: every metric of reports/evaluate.json can be computed from it by hand."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
import stages.evaluate
from pipeline.learn.vocabulary import measured_words
from pipeline.manifest import FrameLabel, Question, write_manifest
from tests.stages.test_train import (
    CLIP_IDS,
    REPOSITORY,
    SPLITS,
    make_workspace,
    read_table,
    run_here,
    write_params,
)
from tests.support.toy import make_clip

pytestmark = pytest.mark.slow

MODELS = ["recurrent", "shuffled", "baseline"]
TEST_IDS = CLIP_IDS[-5:]
PATH = Path("reports/predictions.parquet")
LABELS = ("down", "left", "up")


def evaluated(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    changes: Sequence[Mapping[str, Any]] = (),
    **train: Any,
) -> tuple[dict[str, Any], pa.Table]:
    """The metrics and the predictions of a task; the answer "never heard" is in the test split alone.

    Each clip has these changes.
    """
    make_workspace(workspace)
    clips = [
        make_clip(
            clip_id,
            split=split,
            label=LABELS[number % 3],
            values=(float(number), number / 7),
            frame_labels=(FrameLabel(0.0, 0.04, LABELS[number % 3]), FrameLabel(0.04, 0.08, "rest")),
            captions=("up", "down") if number % 2 else ("left",),
            questions=(
                Question("which?", ("one", "two")[number % 2]),
                *[Question("what?", "never heard" if split == "test" else "one")] * (number % 3),
            ),
        )
        for number, (clip_id, split) in enumerate(zip(CLIP_IDS, SPLITS, strict=True))
    ]
    changed = (
        [replace(clip, **change) for clip, change in zip(clips, changes, strict=True)] if changes else clips
    )
    write_manifest(workspace / "manifests/toy.csv", changed)
    write_params(workspace, train={"epochs": 2, **train})
    return run_here(workspace, monkeypatch), pq.read_table(workspace / PATH)


def rows_of(table: pa.Table, model: str) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["model"] == model]


def mean_loss(rows: list[dict[str, Any]]) -> float:
    counted = [row for row in rows if row["loss"] is not None]
    return float(
        np.average([row["loss"] for row in counted], weights=[row["loss_weight"] for row in counted])
    )


def accuracy(rows: list[dict[str, Any]]) -> float:
    return sum(row["truth"] == row["answer"] for row in rows) / len(rows)


def check_probabilities(table: pa.Table) -> None:
    classes = json.loads(table.schema.metadata[b"classes"])
    probabilities = np.stack(table["probabilities"].to_pylist())
    assert probabilities.shape == (len(table), len(classes))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert [classes[number] for number in probabilities.argmax(axis=1)] == table["answer"].to_pylist()


@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_metrics_of_classification_follow_from_the_predictions(tmp_path, monkeypatch, class_weights):
    metrics, table = evaluated(tmp_path, monkeypatch, class_weights=class_weights)
    assert table.column_names == [
        "model",
        "clip_id",
        "truth",
        "answer",
        "probabilities",
        "loss",
        "loss_weight",
    ]
    assert table["model"].to_pylist() == [model for model in MODELS for _ in TEST_IDS]
    check_probabilities(table)
    for model in MODELS:
        rows = rows_of(table, model)
        assert [row["clip_id"] for row in rows] == TEST_IDS
        assert mean_loss(rows) == pytest.approx(metrics[model]["loss"])
        assert accuracy(rows) == metrics[model]["accuracy"]
        for row in rows:
            probability = row["probabilities"][LABELS.index(row["truth"])]
            assert row["loss"] == pytest.approx(-math.log(probability), rel=1e-5)
    confusion = Counter(
        (row["actual"], row["predicted"]) for row in read_table(tmp_path / "plots/confusion.csv")
    )
    assert confusion == Counter((row["truth"], row["answer"]) for row in rows_of(table, "recurrent"))


def test_metrics_of_frame_labels_follow_from_the_predictions(tmp_path, monkeypatch):
    train = {"task": "frame_labels", "window": 3, "stride": 2, "class_weights": "balanced"}
    metrics, table = evaluated(tmp_path, monkeypatch, **train)
    check_probabilities(table)
    for model in MODELS:
        rows = rows_of(table, model)
        # Of each clip's frames at 0, 0.04, 0.08, ... s the first two have labels.
        places = [(row["clip_id"], row["frame_seconds"]) for row in rows]
        assert places == [(clip_id, seconds) for clip_id in TEST_IDS for seconds in (0, 0.04)]
        assert mean_loss(rows) == pytest.approx(metrics[model]["loss"])
        assert accuracy(rows) == metrics[model]["accuracy"]
    confusion = [(row["actual"], row["predicted"]) for row in read_table(tmp_path / "plots/confusion.csv")]
    assert confusion == [(row["truth"], row["answer"]) for row in rows_of(table, "recurrent")]


@pytest.mark.parametrize("task", ["multilabel", "frame_multilabel"])
def test_metrics_of_several_labels_follow_from_the_predictions(tmp_path, monkeypatch, task):
    labels = [("down|left", "left", "down|up", None)[number % 4] for number in range(len(CLIP_IDS))]
    overlapping = (FrameLabel(0.0, 0.09, "down"), FrameLabel(0.0, 0.05, "up"), FrameLabel(0.02, 0.06, "left"))
    changes = [
        {"label": label, "frame_labels": overlapping[: 1 + 2 * (number % 2)] if label else ()}
        for number, label in enumerate(labels)
    ]
    window = {"window": 3, "stride": 2} if task == "frame_multilabel" else {}
    train = {
        "task": task,
        "class_weights": "balanced",
        "focal_gamma": 1.0,
        "balanced_sampling": True,
        **window,
    }
    metrics, table = evaluated(tmp_path, monkeypatch, changes=changes, **train)
    classes = json.loads(table.schema.metadata[b"classes"])
    assert classes == ["down", "left", "up"]
    for name in ("recurrent", "baseline"):
        description = json.loads((tmp_path / f"checkpoints/{name}/checkpoint.json").read_text())
        thresholds = dict(zip(classes, description["task"]["thresholds"], strict=True))
        rows = rows_of(table, name)
        assert mean_loss(rows) == pytest.approx(metrics[name]["loss"])
        for row in rows:
            said = [
                label
                for label, p in zip(classes, row["probabilities"], strict=True)
                if p >= thresholds[label]
            ]
            assert said == row["answer"]
        hits = sum(len(set(row["truth"]) & set(row["answer"])) for row in rows)
        marked = sum(len(row["truth"]) + len(row["answer"]) for row in rows)
        assert metrics[name]["micro_f1"] == pytest.approx(2 * hits / marked)
    truths = {row["clip_id"]: row["truth"] for row in rows_of(table, "shuffled")}
    if task == "multilabel":
        assert [truths[clip_id] for clip_id in TEST_IDS] == [
            sorted(label.split("|")) if label else [] for label in labels[-5:]
        ]
    assert read_table(tmp_path / "plots/confusion.csv") == []
    by_class = read_table(tmp_path / "plots/classes.csv")
    rows = rows_of(table, "recurrent")
    counts = Counter(label for row in rows for label in row["truth"])
    assert {row["class"]: int(row["num_rows"]) for row in by_class} == {
        name: counts[name] for name in classes
    }


def test_metrics_of_regression_follow_from_the_predictions(tmp_path, monkeypatch):
    metrics, table = evaluated(tmp_path, monkeypatch, task="regression")
    assert table.column_names == ["model", "clip_id", "value", "truth", "answer", "loss", "loss_weight"]
    for model in MODELS:
        rows = rows_of(table, model)
        assert [row["value"] for row in rows] == [1, 2] * 5
        assert [row["truth"] for row in rows[:2]] == [16.0, 16 / 7]
        assert mean_loss(rows) == pytest.approx(metrics[model]["loss"])
        for value in (1, 2):
            errors = np.array([row["truth"] - row["answer"] for row in rows if row["value"] == value])
            assert np.abs(errors).mean() == pytest.approx(metrics[model][f"mae_{value}"])
            assert np.sqrt((errors**2).mean()) == pytest.approx(metrics[model][f"rmse_{value}"])


@pytest.mark.parametrize("task", ["captioning", "frame_words"])
def test_metrics_of_captions_follow_from_the_predictions(tmp_path, monkeypatch, task):
    metrics, table = evaluated(tmp_path, monkeypatch, task=task)
    assert table.column_names == ["model", "clip_id", "truth", "answer", "loss", "loss_weight"]
    for model in MODELS:
        rows = rows_of(table, model)
        assert [row["truth"] for row in rows[:2]] == [["left"], ["up", "down"]]
        # Each caption is a word and an end; without a decoder, the first caption alone is read.
        num_captions = [1, 2, 1, 2, 1] if task == "captioning" else [1] * 5
        assert [row["loss_weight"] for row in rows] == [2 * number for number in num_captions]
        assert mean_loss(rows) == pytest.approx(metrics[model]["loss"])
        assert math.exp(mean_loss(rows)) == pytest.approx(metrics[model]["perplexity"])
        hits = [measured_words(row["answer"]) in map(measured_words, row["truth"]) for row in rows]
        assert np.mean(hits) == metrics[model]["exact_match"]


def test_metrics_of_what_frames_say_follow_from_the_predictions(tmp_path, monkeypatch):
    metrics, table = evaluated(tmp_path, monkeypatch, task="ctc")
    assert table.column_names == ["model", "clip_id", "truth", "answer", "loss", "loss_weight"]
    for model in MODELS:
        rows = rows_of(table, model)
        assert [row["loss_weight"] for row in rows] == [1] * 5  # words of the first caption
        assert mean_loss(rows) == pytest.approx(metrics[model]["loss"])
        hits = [measured_words(row["answer"]) in map(measured_words, row["truth"]) for row in rows]
        assert np.mean(hits) == metrics[model]["exact_match"]
        # All captions are one word: at best it is said, and each other word is one too many.
        said = [measured_words(row["answer"]) for row in rows]
        errors = [
            max(len(words), 1) - any(text in words for text in row["truth"])
            for words, row in zip(said, rows, strict=True)
        ]
        assert sum(errors) / 5 == metrics[model]["word_error_rate"]


def test_metrics_of_answers_to_questions_follow_from_the_predictions(tmp_path, monkeypatch):
    metrics, table = evaluated(tmp_path, monkeypatch, task="question_answering")
    assert json.loads(table.schema.metadata[b"classes"]) == ["one", "two"]
    check_probabilities(table)
    for model in MODELS:
        rows = rows_of(table, model)
        asked = [(row["clip_id"], row["question"], row["truth"]) for row in rows]
        assert asked == [
            question
            for number, clip_id in list(enumerate(CLIP_IDS))[-5:]
            for question in (
                (clip_id, "which?", ("one", "two")[number % 2]),
                *[(clip_id, "what?", "never heard")] * (number % 3),
            )
        ]
        unheard = [row for row in rows if row["truth"] == "never heard"]
        assert [(row["loss"], row["loss_weight"]) for row in unheard] == [(None, 0)] * 6
        assert mean_loss(rows) == pytest.approx(metrics[model]["loss"])
        assert accuracy(rows) == pytest.approx(metrics[model]["accuracy"])


def test_the_file_has_the_same_bytes_again_and_a_notebook_gets_the_same_table(tmp_path, monkeypatch):
    _, table = evaluated(tmp_path, monkeypatch)
    first = PATH.read_bytes()
    PATH.unlink()
    stages.evaluate.main()
    assert PATH.read_bytes() == first
    config = pipeline.EvaluateConfig()
    evaluation = pipeline.evaluate("checkpoints", "features/layer4", "manifests/toy.csv", config=config)
    assert evaluation.predictions.equals(table)
    assert evaluation.predictions.schema.metadata == table.schema.metadata


def test_the_example_of_the_page_shows_the_worst_answers(tmp_path, monkeypatch, capsys):
    _, table = evaluated(tmp_path, monkeypatch, epochs=1)
    (code,) = re.findall(
        r"```python\n(.*?)```", (REPOSITORY / "docs/experiments.md").read_text(), flags=re.DOTALL
    )
    capsys.readouterr()
    exec(code, {})
    wrong = [row for row in rows_of(table, "recurrent") if row["truth"] != row["answer"]]
    assert wrong
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        row["clip_id"] for row in sorted(wrong, key=lambda row: row["loss"], reverse=True)
    ]
