"""The stages train and evaluate on tasks of words, in this process, on a small view of the real store."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import stages.evaluate
import stages.report
from pipeline.errors import ConfigError
from pipeline.learn.decoding import Sentence, beam_search
from pipeline.learn.tasks import captions
from pipeline.learn.vocabulary import measured_words
from pipeline.manifest import Question, write_manifest
from tests.stages.test_train import CLIP_IDS, SPLITS, make_workspace, run_here, write_params
from tests.support.media import write_video
from tests.support.page import read_page
from tests.support.toy import make_clip

pytestmark = pytest.mark.slow

SMALL = {"embedding_size": 4, "hidden_size": 4}


def words_workspace(path: Path, **train: Any) -> Path:
    """The features of test_stage_train, with captions and questions; the first test clip has a video."""
    workspace = make_workspace(path)
    clips = [
        make_clip(
            clip_id,
            split=split,
            captions=("up, then down", "up") if number % 2 else ("left",),
            questions=(Question("which?", ("one", "two")[number % 2]),) * (1 + number % 3),
        )
        for number, (clip_id, split) in enumerate(zip(CLIP_IDS, SPLITS, strict=True))
    ]
    write_manifest(workspace / "manifests/toy.csv", clips)
    decoder = {"decoder": SMALL} if train["task"] == "captioning" else {}
    write_params(workspace, train={"epochs": 2, **decoder, **train})
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["corpus"]["root"] = "corpus"
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    write_video(workspace / "corpus" / f"{CLIP_IDS[-5]}.mp4", num_frames=2 + 16 % 4, size=(48, 64))
    return workspace


def test_beams_are_changed_without_training_again(tmp_path, monkeypatch):
    workspace = words_workspace(tmp_path, task="captioning")
    metrics = run_here(workspace, monkeypatch)
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["evaluate"] = {**params["evaluate"], "beam_size": 3, "length_power": 0.5}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    search, asked = beam_search, set()

    def watch(*arguments: Any, **options: Any) -> list[Sentence]:
        asked.add((options["beam_size"], options["length_power"]))
        return search(*arguments, **options)

    monkeypatch.setattr(captions, "beam_search", watch)
    stages.evaluate.main()
    assert asked == {(3, 0.5)}
    again = json.loads((workspace / "reports/evaluate.json").read_text())
    assert again["recurrent"]["perplexity"] == metrics["recurrent"]["perplexity"]
    params["train"] = {"task": "question_answering"}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ConfigError, match=r"evaluate: beam_size 3 does nothing: it needs task captioning"):
        run_here(workspace, monkeypatch)


def test_captions_are_trained_measured_and_drawn(tmp_path, monkeypatch, capsys):
    train = {"task": "captioning", "scan": "locations", "words": {"beam_size": 2, "max_words": 5}}
    workspace = words_workspace(tmp_path, **train)
    metrics = run_here(workspace, monkeypatch)
    assert set(metrics) == {"recurrent", "shuffled", "baseline"}
    assert {"exact_match", "cider", "bleu_4", "perplexity", "token_accuracy"} <= set(metrics["recurrent"])
    description = json.loads((workspace / "checkpoints/recurrent/checkpoint.json").read_text())["task"]
    assert description["vocabulary"][4:] == ["up", "left", ",", "down", "then"]
    assert "mean-pool + decoder" in capsys.readouterr().out

    monkeypatch.setattr("sys.argv", ["report"])
    stages.report.main()
    page = read_page(workspace / "reports/index.html")
    clips = {clip.text("h4"): clip for clip in page.all("article")}
    assert sorted(clips) == CLIP_IDS[-5:]
    rows = pq.read_table(workspace / "reports/predictions.parquet").to_pylist()
    for row in rows[:5]:
        words = [word.text() for word in clips[row["clip_id"]].all(class_="word")]
        assert words == measured_words(row["answer"])
    shown = clips[CLIP_IDS[-5]]
    assert (
        shown.one("img", class_="strip").attributes["alt"].startswith("2 frames of clip16, from 0 to 0.1 s")
    )
    assert len(shown.all("video")) == 1
    for clip in CLIP_IDS[-4:]:
        assert "No such file or directory" in clips[clip].text(class_="notice")


@pytest.mark.parametrize(
    ("task", "metric", "num_asked", "baseline"),
    [
        ("frame_words", "exact_match", 5, "mean-pool + linear"),
        ("ctc", "exact_match", 5, "mean-pool + linear"),
        (
            "question_answering",
            "accuracy",
            sum(1 + number % 3 for number in range(len(CLIP_IDS))[-5:]),
            "question only",
        ),
    ],
)
def test_other_tasks_of_words_are_measured(tmp_path, monkeypatch, capsys, task, metric, num_asked, baseline):
    workspace = words_workspace(tmp_path, task=task)
    if task in ("frame_words", "ctc"):  # the shortest clip has 2 frames
        manifest = workspace / "manifests/toy.csv"
        manifest.write_text(manifest.read_text().replace('"up, then down|up"', "up"))
    metrics = run_here(workspace, monkeypatch)
    right = metrics["recurrent"][metric] * num_asked
    assert right == pytest.approx(round(right))
    assert baseline in capsys.readouterr().out
