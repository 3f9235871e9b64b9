"""The page has the numbers of its inputs, whatever clips are called and whatever is missing."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.learn.evaluation import (
    comparison_table,
    order_sentence,
    prediction_table,
    score_predictions,
    with_interval,
)
from pipeline.learn.metrics import class_scores
from pipeline.learn.tasks import (
    Classification,
    FrameLabels,
    FrameMultilabel,
    Multilabel,
    Predictions,
    Regression,
    Task,
)
from pipeline.manifest import Clip, write_manifest
from pipeline.report.compare_runs import compare_runs
from pipeline.report.page import Change, Extras, Look, gallery, page, write_page
from pipeline.report.page.page import render_page
from pipeline.report.page.timelines import timeline_of_labels
from pipeline.report.runs import Curve, Run
from tests.support.crashes import read_or_crash
from tests.support.media import write_video
from tests.support.page import Node, read_page
from tests.support.runs import answer_table, make_run
from tests.support.toy import make_clip

CLASSES = ("down", "left", "up")
HOSTILE = [
    '"><script>alert(1)</script>',
    "</title></style></script><b>",
    "{{ 7 * 7 }} {% raw %}",
    "' onmouseover='alert(1)",
    "&lt;i&gt; \u202eright to left\u202c \U0001f600",
]

EXTRACTION = {
    "clips": 1000,
    "clips_with_features": 998,
    "clips_left_out": 2,
    "clips_damaged_kept": 1,
    "clips_computed": 1000,
    "frames_computed": 11932,
    "bytes_computed": 390987776,
    "seconds": 42.07,
    "frames_per_second": 283.6,
    "limited_by": "decode",
    "restarts": 0,
    "lanes": {"decode": {"threads": 2, "busy": 0.91, "starved": 0.0, "blocked": 0.05}},
}


def write_clips(path: Path, clips: Sequence[Clip]) -> None:
    """A manifest of these clips, and of one in each of the other splits."""
    write_manifest(path / "toy.csv", [*clips, *(make_clip(split, split=split) for split in ("train", "val"))])


def evaluated(task: Task, clips: Sequence[Clip], outputs: list, targets: list, path: Path) -> Run:
    """A run whose shuffled control and baseline answer the opposite; its manifest is in the folder `path`."""
    per_frame = task.facts.per_frame
    predictions = Predictions(
        tuple(clips),
        tuple(torch.tensor(output, dtype=torch.float32) for output in outputs),
        tuple(map(torch.tensor, targets)),
        tuple(torch.arange(len(target)).double() / 10 for target in targets) if per_frame else (),
    )
    worse = dataclasses.replace(predictions, outputs=tuple(-output for output in predictions.outputs))
    answers = {"recurrent": predictions, "shuffled": worse, "baseline": worse}
    scores = {
        name: score_predictions(each, task=task, num_resamples=20, seed=0) for name, each in answers.items()
    }
    labels = dict(zip(("LSTM", "LSTM, frames shuffled", "mean-pool + linear"), scores.values(), strict=True))
    monitor = next(iter(task.facts.monitors))
    sentence = order_sentence(scores["recurrent"], scores["shuffled"], task=task, monitor=monitor)
    write_clips(path, clips)
    return make_run(
        "workspace",
        prediction_table(answers, task=task),
        manifest=path / "toy.csv",
        metrics={name: score.as_json() for name, score in scores.items()},
        summary=f"{comparison_table(labels)}\n\n{sentence}\n",
        curves={"recurrent": {"loss": Curve((2.0, 1.0, float("nan")), (1.5, 1.25, 1.125))}},
        training={"recurrent": {"num_epochs": 3, "best_epoch": 2}},
    )


def classified(
    path: Path,
    pairs: Sequence[tuple[int, int]],
    *,
    classes: Sequence[str] = CLASSES,
    names: Sequence[str] = (),
) -> Run:
    """A run of clips with these (right, answered) classes, the later ones surer of their answer."""
    names = names or [f"clip{number:03}" for number in range(len(pairs))]
    clips = [
        make_clip(name, sources=(f"clip{number}.mp4",), split="test", label=classes[truth])
        for number, (name, (truth, _)) in enumerate(zip(names, pairs, strict=True))
    ]
    sure = [0.5 + number / 50 for number in range(len(pairs))]
    outputs = [
        np.where(np.arange(len(classes)) == a, s, 0).tolist() for (_, a), s in zip(pairs, sure, strict=True)
    ]
    return evaluated(Classification(tuple(classes)), clips, outputs, [truth for truth, _ in pairs], path)


def shown(run: Run, **extras: object) -> Node:
    return read_page(render_page([run], title="Toy", extras=Extras(**extras)))  # type: ignore[arg-type]


PAIRS = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 2), (2, 0)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return classified(tmp_path_factory.mktemp("run"), PAIRS)


@pytest.fixture(scope="module")
def root(run: Run) -> Node:
    return shown(run)


def test_the_headline_has_the_evaluations_sentence_and_each_models_value_and_interval(run, root):
    result = root.at("result")
    assert result.text(class_="lead") == run.summary.splitlines()[-1]
    figures = [node.text() for node in result.all(class_="figure")]
    for figure, scores in zip(figures, run.metrics.values(), strict=True):
        low, high = scores["intervals"]["accuracy"]
        assert figure == f"{scores['accuracy']:.4f} [{low:.3f}, {high:.3f}]"
    header, *rows = result.table()
    assert header == ["model", "loss", "accuracy", "macro f1", "ece", "mAP"]
    assert [row[0] for row in rows] == ["LSTM", "LSTM, frames shuffled", "mean-pool + linear"]


def test_each_cell_of_the_confusion_counts_clips_and_leads_to_them(root):
    confusion, numbers = root.at("confusion"), {}
    for row in confusion.one("tbody").all("tr"):
        for cell in row.all("td")[:-1]:
            if links := cell.all("a"):
                numbers[links[0].attributes["data-cell"]] = int(links[0].text())
                first = root.at(links[0].attributes["href"].removeprefix("#"))
                assert links[0].attributes["data-cell"] in first.attributes["data-cells"].split()
            else:
                assert cell.text() == "0"
    assert numbers == {f"{truth}:{answer}": PAIRS.count((truth, answer)) for truth, answer in PAIRS}
    cells = [cell for clip in root.all("article") for cell in clip.attributes["data-cells"].split()]
    assert {cell: cells.count(cell) for cell in cells} == numbers


def test_the_class_table_has_the_scores_of_each_class(root):
    actual, predicted = (np.array(each) for each in zip(*PAIRS, strict=True))
    scores = class_scores(*(np.eye(3, dtype=bool)[numbers] for numbers in (predicted, actual)))
    expected = [
        [name, str(score.num_rows), *(f"{value:.4f}" for value in (score.precision, score.recall, score.f1))]
        for name, score in zip(CLASSES, scores, strict=True)
    ]
    assert root.at("classes").table() == [["class", "clips", "precision", "recall", "F1"], *expected]


def test_clips_come_by_their_loss_with_answer_truth_and_probabilities(run, root):
    rows = {row["clip_id"]: row for row in run.predictions.to_pylist() if row["model"] == "recurrent"}
    clips = root.all("article")
    assert [clip.text("h4") for clip in clips] == sorted(rows, key=lambda clip: -rows[clip]["loss"])
    for clip in clips:
        row = rows[clip.text("h4")]
        assert clip.text("strong") == row["answer"]
        assert [node.text() for node in clip.all(class_="truth")] == [f"truth: {row['truth']}"] * (
            row["truth"] != row["answer"]
        )
        ranked = sorted(zip(row["probabilities"], CLASSES, strict=True), reverse=True)
        first = clip.one(class_="ranked").all("li")[0].text()
        assert first == f"{ranked[0][1]} {100 * ranked[0][0]:.1f} %"


def test_a_curve_goes_through_the_values_with_a_gap_where_there_is_none(root):
    train, val = root.at("curves").one(class_="chart").all("path")
    assert train.attributes["d"].count("L") == 1
    assert val.attributes["d"].count("L") == 2
    label = root.at("curves").one(class_="chart").one("svg").attributes["aria-label"]
    assert label == "loss over 3 epochs: train ends at nan, val ends at 1.125."


def test_everything_inside_has_its_target_and_nothing_is_outside(root):
    anchors = {node.attributes["id"] for node in root if "id" in node.attributes}
    assert len(anchors) == len([node for node in root if "id" in node.attributes])
    for node in root:
        for name in ("href", "src", "poster", "data", "action", "srcset"):
            address = node.attributes.get(name, "data:")
            assert address.startswith("data:") or address.removeprefix("#") in anchors, address
        assert "url(" not in node.attributes.get("style", "")
    assert "url(" not in root.text("style")
    assert "@import" not in root.text("style")


def test_every_picture_has_a_text(run, tmp_path):
    write_video(tmp_path / "clip0.mp4", num_frames=12, size=(64, 48))
    pictures = [node for node in shown(run, root=tmp_path) if node.tag in ("img", "video", "svg")]
    assert {node.tag for node in pictures} == {"img", "video", "svg"}
    for node in pictures:
        texts = (node.attributes.get(name, "") for name in ("alt", "aria-label", "aria-hidden"))
        assert any(texts)


def test_names_are_shown_as_they_are_whatever_they_hold(tmp_path):
    pairs = [(number, (number + 1) % 5) for number in range(5)]
    run = classified(tmp_path, pairs, classes=HOSTILE, names=HOSTILE)
    quarantine = [
        {"clip_id": HOSTILE[0], "source": "", "reason": HOSTILE[1], "num_recovered": "3", "policy": "drop"}
    ]
    hostile = shown(
        dataclasses.replace(run, extraction=EXTRACTION),
        quarantine=quarantine,
        parent=HOSTILE[1],
        changes=[Change(HOSTILE[0], HOSTILE[1], HOSTILE[2])],
        faults={HOSTILE[0]: HOSTILE[1]},
    )
    assert len(hostile.all("script")) == len(hostile.all("style")) == 1
    assert not [name for node in hostile for name in node.attributes if name.startswith("on")]
    assert not hostile.all("b")
    texts = [" ".join(name.split()) for name in HOSTILE]
    assert sorted(clip.text("h4") for clip in hostile.all("article")) == sorted(texts)
    assert {row[0] for row in hostile.at("classes").table()[1:]} == set(texts)
    assert hostile.at("extraction").one(class_="sortable").all("tr")[1].all("td")[0].text() == texts[1]


@pytest.mark.parametrize(("num_clips", "num_shown"), [(30, 30), (400, 200)])
def test_at_most_200_clips_are_shown_the_extremes_and_some_of_each_cell(tmp_path, num_clips, num_shown):
    rng = np.random.default_rng(0)
    pairs = [(int(truth), int(truth)) for truth in rng.integers(0, 3, num_clips)]
    pairs[num_clips // 2] = (0, 2)  # one mistake, of middling loss
    run = classified(tmp_path, pairs)
    clips = [clip.text("h4") for clip in shown(run).all("article")]
    losses = {
        row["clip_id"]: row["loss"] for row in run.predictions.to_pylist() if row["model"] == "recurrent"
    }
    order = sorted(losses, key=lambda clip: -losses[clip])
    assert len(clips) == num_shown
    assert clips[:15] == order[:15]
    assert clips[-15:] == order[-15:]
    assert f"clip{num_clips // 2:03}" in clips


def test_a_page_that_is_too_large_shows_fewer_clips(tmp_path, monkeypatch):
    texts = ["word " * 50 for _ in range(200)]
    table = answer_table(
        [f"c{number:03}" for number in range(200)],
        task="captioning",
        truth=[[text] for text in texts],
        answer=texts,
    )
    monkeypatch.setattr(page, "_MAX_BYTES", 60_000)
    size = write_page(tmp_path / "page.html", [make_run("workspace", table)], title="Toy")
    clips = read_page(tmp_path / "page.html").all("article")
    assert size == (tmp_path / "page.html").stat().st_size <= 60_000
    assert len(clips) in (3, 12, 50)


def test_a_clip_without_frames_has_its_row_and_the_reason(run, tmp_path):
    write_video(tmp_path / "clip0.mp4", num_frames=12, size=(64, 48))
    (tmp_path / "clip1.mp4").write_bytes(b"no video")
    clips = {clip.text("h4"): clip for clip in shown(run, root=tmp_path).all("article")}
    assert clips["clip000"].one("img").attributes["alt"] == "8 frames of clip000, from 0 to 1.1 s"
    assert len(clips["clip000"].all("video")) == 1
    assert "clip1.mp4" in clips["clip001"].text(class_="notice")
    assert "No such file or directory" in clips["clip002"].text(class_="notice")
    gone = dataclasses.replace(run, manifest=tmp_path / "gone.csv")
    root = shown(gone, root=tmp_path)
    assert len(root.all("article")) == len(PAIRS)
    assert "No manifest" in root.at("clips").all(class_="notice")[0].text()


def test_a_clip_that_crashes_the_decoder_has_the_reason_and_the_others_stand(run, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "_read_in_time", read_or_crash)
    clips = {clip.text("h4"): clip for clip in shown(run, root=tmp_path).all("article")}
    reasons = {name: clip.text(class_="notice") for name, clip in clips.items()}
    assert reasons.pop("clip002") == "No pictures: its decoder was ended by SIGSEGV"
    assert set(reasons.values()) == {"No pictures: it is well"}


def test_a_section_that_fails_is_a_notice_and_the_others_stand(run, caplog):
    with caplog.at_level(logging.ERROR):
        root = shown(dataclasses.replace(run, metrics={"recurrent": {}}))
    assert "KeyError" in root.at("result").text(class_="notice")
    assert len(root.all("article")) == len(PAIRS)
    assert "The page's section 'Result' failed: KeyError('accuracy')" in caplog.text


def test_what_was_varied_and_how_features_were_made_is_on_the_page(run):
    reasons = [{"clip_id": "a", "source": "", "reason": "cut off", "num_recovered": "3", "policy": "keep"}]
    root = shown(
        dataclasses.replace(run, extraction=EXTRACTION),
        quarantine=reasons,
        parent="commit 65cc927 (one)",
        changes=[
            Change("train.hidden_size", 64, 128),
            Change("train.scan_size", "-", None),
            Change("extract.taps", ["a"], True),
        ],
    )
    assert root.at("settings").all("table")[0].all("tr")[1].text() == "train.hidden_size 64 128"
    assert root.at("settings").all("table")[0].all("tr")[2].text() == "train.scan_size - null"
    assert root.at("settings").all("table")[0].all("tr")[3].text() == 'extract.taps ["a"] true'
    text = root.at("extraction").text()
    for part in (
        "998 of 1,000 clips",
        "2 are left out",
        "11,932 frames",
        "391.0 MB",
        "limited by decode",
        "91.0 %",
    ):
        assert part in text
    assert root.at("extraction").all("tr")[-1].text() == "a cut off 3 kept as far as it goes"
    fields = {row[0]: row[1] for row in root.at("contract").table()}
    assert fields["tap"] == run.contracts[0].tap
    assert fields["digest"] == run.contracts[0].digest()


def test_contracts_of_all_streams_are_on_the_page_and_those_of_other_runs_are_compared(run):
    (contract,) = run.contracts
    other = contract.model_copy(update={"tap": "layer3"})
    streams = dataclasses.replace(run, contracts=(contract, other))
    rows = {row[0]: row[1:] for row in shown(streams).at("contract").table()}
    assert rows["tap"] == [contract.tap, "layer3"]
    assert rows["digest"] == [contract.digest(), other.digest()]
    moved = dataclasses.replace(streams, name="moved", contracts=(contract, contract))
    alone = dataclasses.replace(run, name="alone")
    page = render_page([streams, moved, alone], title="Toy")
    text = read_page(page).at("contract").text()
    assert "moved has another contract; it differs in tap." in text
    assert "alone has another contract; it differs in the number of streams." in text


def test_frame_labels_have_timelines_of_truth_and_answer(tmp_path):
    clips = [make_clip("a", split="test"), make_clip("b", split="test")]
    outputs = [[[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 1.0]], [[0.0, 3.0], [3.0, 0.0]]]
    run = evaluated(FrameLabels(("left", "up")), clips, outputs, [[0, 1, 1, -100], [1, 0]], tmp_path)
    root = shown(run)
    clip = next(clip for clip in root.all("article") if clip.text("h4") == "a")
    tracks = [node.attributes["aria-label"] for node in clip.all("div") if "aria-label" in node.attributes]
    assert tracks == [
        "truth: left from 0 to 0.1 s, up from 0.1 to 0.3 s",
        "answer: left from 0 to 0.2 s, up from 0.2 to 0.3 s",
    ]
    assert "2 of 3 labelled frames are right" in clip.text()
    assert [node.text() for node in root.at("confusion").all("a")] == ["2", "1", "2"]


LABELS = ("sing", "talk", "walk")
LABEL_LOGITS = [[2.0, -2.0, -3.0], [2.0, 1.0, -1.0], [-1.0, 3.0, 3.0], [-4.0, -4.0, -4.0]]
LABEL_MARKS = [[1, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0]]


def with_labels(path: Path) -> Run:
    """A run of four clips with several labels, three of which have a camera."""
    clips = [make_clip(name, split="test", meta={"camera": "2"} if name != "d" else {}) for name in "abcd"]
    return evaluated(Multilabel(LABELS), clips, LABEL_LOGITS, LABEL_MARKS, path)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return with_labels(tmp_path_factory.mktemp("labels"))


def grouped(run: Run, by: dict[str, object]) -> Run:
    """The run with metrics by columns meta_<name>."""
    return dataclasses.replace(
        run, metrics={**run.metrics, "recurrent": {**run.metrics["recurrent"], "by": by}}
    )


def test_each_of_several_labels_has_its_outcome_and_its_probability(labelled):
    clips = {clip.text("h4"): clip for clip in shown(labelled).all("article")}
    assert [node.text() for node in clips["a"].one(class_="labels").all("li")] == [
        "sing ✓ found · 88.1 %",
        "talk 11.9 %",
        "walk ○ missed · 4.7 %",
    ]
    assert "✗ wrong 1 of 2 labels found" in clips["a"].text()
    assert "✗ wrong 1 of 1 labels found, 1 wrong" in clips["b"].text()
    assert "✓ correct 2 of 2 labels found" in clips["c"].text()
    assert "✓ correct 0 of 0 labels found" in clips["d"].text()


def test_the_table_of_several_labels_counts_outcomes_and_leads_to_their_clips(labelled):
    root = shown(labelled)
    header, *rows = root.at("classes").table()
    assert header == ["class", "clips", "AP", "precision", "recall", "F1", "found", "missed", "wrong"]
    assert rows == [
        ["sing", "1", "0.5000", "0.5000", "1.0000", "0.6667", "1", "0", "1"],
        ["talk", "2", "1.0000", "1.0000", "1.0000", "1.0000", "2", "0", "0"],
        ["walk", "2", "0.8333", "1.0000", "0.5000", "0.6667", "1", "1", "0"],
    ]
    precisions = [float(row[2]) for row in rows]
    assert np.mean(precisions) == pytest.approx(labelled.metrics["recurrent"]["mAP"], abs=1e-4)
    links = {link.attributes["data-cell"]: link for link in root.at("classes").all("a")}
    assert links.keys() == {"0:found", "0:wrong", "1:found", "2:found", "2:missed"}
    for token, link in links.items():
        first = root.at(link.attributes["href"].removeprefix("#"))
        assert token in first.attributes["data-cells"].split()
        cells = [clip.attributes["data-cells"].split() for clip in root.all("article")]
        assert int(link.text()) == sum(token in each for each in cells)


def test_clips_with_a_value_of_a_column_are_a_group_with_its_metrics(labelled):
    score = {"mAP": 0.75, "loss": 0.25, "num_clips": 3, "intervals": {"mAP": [0.5, 0.9], "loss": None}}
    none = {"mAP": None, "loss": 0.1, "num_clips": 1, "intervals": {"mAP": None, "loss": None}}
    by = {
        "meta_camera": {"num_values": 2, "values": {"": none, "2": score}},
        "meta_day": {"num_values": 300, "values": None},
    }
    root = shown(grouped(labelled, by))
    assert root.at("groups").table() == [
        ["value", "clips", "mAP", "", "loss"],
        ["(empty)", "1", "undefined [unknown]", "", "0.1000 [unknown]"],
        ["2", "3", "0.7500 [0.500, 0.900]", "", "0.2500 [unknown]"],
    ]
    assert "meta_day has 300 values: too many for a table." in root.at("groups").text()
    empty, two = (link.attributes["data-cell"] for link in root.at("groups").all("a"))
    tokens = {clip.text("h4"): clip.attributes["data-cells"].split() for clip in root.all("article")}
    assert {name for name, cells in tokens.items() if two in cells} == set("abc")
    assert {name for name, cells in tokens.items() if empty in cells} == {"d"}
    assert {
        clip.text("h4"): [node.text() for node in clip.all(class_="meta")] for clip in root.all("article")
    } == {
        **{name: ["camera 2"] for name in "abc"},
        "d": [],
    }


def test_each_of_several_labels_of_frames_has_lanes_of_truth_and_answer(tmp_path):
    clips = [make_clip("a", split="test")]
    outputs = [[[2.0, -1.0, -1.0], [2.0, 1.0, -1.0], [-1.0, 1.0, -1.0]]]
    targets = [[[1, 0, 0], [1, 0, 0], [1, 1, 0]]]
    root = shown(evaluated(FrameMultilabel(LABELS), clips, outputs, targets, tmp_path))
    (clip,) = root.all("article")
    tracks = [node.attributes["aria-label"] for node in clip.all("div") if "aria-label" in node.attributes]
    assert tracks == [
        "sing, truth: from 0 to 0.3 s",
        "sing, answer: from 0 to 0.2 s",
        "talk, truth: from 0.2 to 0.3 s",
        "talk, answer: from 0.1 to 0.3 s",
    ]
    assert [node.text() for node in clip.all(class_="name")] == ["sing", "", "talk", ""]
    assert "1 of 3 frames have all of their labels right, and no other" in clip.text()
    assert root.at("classes").table()[0][:3] == ["class", "frames", "AP"]


def test_of_very_many_labels_of_frames_those_of_most_frames_have_lanes():
    names = [f"label{number:02}" for number in range(15)]
    rows = [{"frame_seconds": 0.0, "truth": names, "answer": names[1:]}]
    found = timeline_of_labels(rows, names)
    assert [lane.name for lane in found.lanes[::2]] == names[1:13]
    assert found.num_left_out == 3


def test_values_are_dots_that_lead_to_their_clips(tmp_path):
    clips = [
        make_clip("a", split="test", values=(8.0, 2.0)),
        make_clip("b", split="test", values=(12.0, -2.0)),
    ]
    task = Regression(mean=(10.0, 0.0), std=(2.0, 4.0))
    run = evaluated(task, clips, [[0.0, 1.0], [1.0, -0.5]], [[-1.0, 0.5], [1.0, -0.5]], tmp_path)
    root = shown(run)
    first, second = root.at("values").all(class_="chart")
    assert [node.text() for node in first.all("circle")] == [
        "a: truth 8, answer 10",
        "b: truth 12, answer 12",
    ]
    assert [node.text() for node in second.all("circle")] == [
        "a: truth 2, answer 4",
        "b: truth -2, answer -2",
    ]
    assert {link.attributes["tabindex"] for link in root.at("values").all("a")} == {"-1"}  # clips come later
    assert root.at(first.one("svg").all("a")[0].attributes["href"].removeprefix("#")).text("h4") == "a"
    assert "value 1 10 truth: 8" in root.all("article")[0].text()


def test_captions_are_right_as_the_metric_says_and_words_have_what_the_model_looked_at(tmp_path):
    table = answer_table(
        ["a", "b"],
        task="captioning",
        truth=[["right", "left up"], ["down"]],
        answer=["left up", "up"],
        loss=[0.5, 1.5],
    )
    clips = [make_clip(name, split="test", captions=("x",)) for name in "ab"]
    write_clips(tmp_path, clips)
    write_video(tmp_path / "a.mp4", num_frames=3, size=(64, 48))
    maps = np.zeros((2, 3, 2, 2), np.float32)
    maps[0, 1, 0, 0], maps[1, 2, 1, 1] = 1.0, 0.5
    run = make_run("workspace", table, manifest=tmp_path / "toy.csv")
    look = Look(("left", "up"), maps, np.array([0.0, 0.04, 0.08]))
    root = shown(run, root=tmp_path, looks=lambda _: {"a": look})
    worst, best = root.all("article")
    assert "✗ wrong up truth: down" in worst.text()
    assert "✓ correct left up" in best.text()
    assert [glance.text(class_="word") for glance in best.all(class_="glance")] == ["left", "up"]
    bars = [[bar.attributes["style"] for bar in glance.all("i")] for glance in best.all(class_="glance")]
    assert bars == [
        ["--share: 0.0", "--share: 1.0", "--share: 0.0"],
        ["--share: 0.0", "--share: 0.0", "--share: 1.0"],
    ]
    assert len(best.all("img")) == 3


def test_an_image_has_places_without_time_and_no_video(tmp_path):
    table = answer_table(["a"], task="captioning", truth=[["up"]], answer=["up"])
    write_clips(tmp_path, [make_clip("a", split="test", sources=("a.png",), captions=("x",))])
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    maps = np.array([[[[0.75, 0.25]]]], np.float32)
    run = make_run("workspace", table, manifest=tmp_path / "toy.csv")
    root = shown(run, root=tmp_path, looks=lambda _: {"a": Look(("up",), maps, np.array([0.0]))})
    assert len(root.one("article").all("img")) == 2
    assert not root.all(class_="bars")
    assert "video" not in root.at("clips").text()


def test_the_weights_of_a_long_clip_are_drawn_to_its_end():
    weights = [0.0] * 999 + [1.0]
    bars = gallery.Glance("", weights).bars
    assert len(bars) == 400
    assert bars[-1] == 1.0
    assert gallery.Glance("", weights[-3:]).bars == [0.0, 0.0, 1.0]


def test_each_question_has_its_answer():
    table = answer_table(
        ["a", "a"],
        task="question_answering",
        question=["how many?", "which?"],
        truth=["two", "seven"],
        answer=["two", "six"],
        probabilities=[[0.25, 0.75], [0.5, 0.5]],
        loss=[0.3, None],
    )
    table = table.replace_schema_metadata({"task": "question_answering", "classes": '["six", "two"]'})
    root = shown(make_run("workspace", table))
    questions = [node.text() for node in root.all("article")[0].all(class_="answer")]
    assert questions == [
        "how many? ✓ correct two two 75.0 % six 25.0 %",
        "which? ✗ wrong six truth: seven six 50.0 % two 50.0 %",
    ]
    assert [row[0] for row in root.at("classes").table()[1:]] == ["six", "two", "seven"]


def test_several_runs_stand_side_by_side_with_the_clips_they_differ_on(tmp_path):
    first, second = (
        dataclasses.replace(
            classified(tmp_path, pairs),
            name=name,
            settings={"train.hidden_size": size},
            metrics={},
            summary="",
        )
        for name, size, pairs in (("small", 8, PAIRS), ("large", 64, [(truth, truth) for truth, _ in PAIRS]))
    )
    comparison = compare_runs([first, second])
    extras = Extras(comparison=comparison)
    root = read_page(render_page(comparison.runs, title="Two", extras=extras))
    leads = [node.text() for node in root.at("result").all(class_="lead")]
    assert leads == [comparison.claim(), comparison.mcnemar()]
    labels = [node.text() for node in root.at("result").all(class_="figure")]
    assert labels == [with_interval(each) for each in comparison.estimates]
    rows = root.at("result").table()[1:]
    assert [row[1] for row in rows] == labels
    assert [row[2] for row in rows] == [
        "best",
        with_interval(comparison.ranking.settings[1].difference, sign="+"),
    ]
    settings = root.at("settings").all("table")[0].all("tr")
    assert [row.text() for row in settings] == ["setting large small", "train.hidden_size 64 8"]
    group, rest = root.at("clips").all(class_="group")
    assert group.text("h3") == "Right: large. Wrong: small 3 clips"
    assert sorted(clip.text("h4") for clip in group.all("article")) == ["clip002", "clip004", "clip007"]
    assert len(rest.all("article")) == 5
    lines = root.at("curves").one(class_="chart").all("path")
    assert [line.text("title") for line in lines] == [
        "large, train",
        "large, val",
        "small, train",
        "small, val",
    ]


def test_equal_runs_are_equal_pages_and_no_run_is_refused(run, tmp_path):
    write_video(tmp_path / "clip0.mp4", num_frames=12, size=(64, 48))
    pages = [render_page([run], title="Toy", extras=Extras(root=tmp_path)) for _ in range(2)]
    assert pages[0] == pages[1]
    with pytest.raises(ValueError, match="at least one run"):
        write_page(tmp_path / "page.html", [], title="None")
