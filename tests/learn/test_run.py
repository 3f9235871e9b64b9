"""`train` and `evaluate` as functions: what a caller is told, and what is refused."""

import shutil
from collections import defaultdict
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import (
    ConfigError,
    InputChangedError,
    ManifestError,
    NonFiniteError,
    UnequalCheckpointsError,
)
from pipeline.learn import identity
from pipeline.learn.checkpoint import load_checkpoint
from pipeline.learn.comparison import answer_split, evaluate
from pipeline.learn.run import Outcome, Trained, train, train_many
from pipeline.learn.shared import Shared
from pipeline.learn.tasks import Classification
from pipeline.manifest import FrameLabel, read_manifest, write_manifest
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.machine import Machine
from pipeline.settings.training import MemberConfig, TrainConfig
from tests.support.features import make_view
from tests.support.toy import make_clip

SPLITS = ("train", "train", "train", "val", "test")
CONFIG = TrainConfig(projection=3, hidden_size=4, epochs=3, batch_size=2)


def make_inputs(folder: Path) -> Path:
    """A manifest of ten clips below `folder`, and their features, whose path is returned."""
    clips = [
        make_clip(
            f"c{number}",
            split=SPLITS[number % 5],
            label=("left", "right")[number // 5],
            values=(float(number),),
        )
        for number in range(10)
    ]
    write_manifest(folder / "manifest.csv", clips)
    return make_view(folder, {clip.clip_id: 3 for clip in clips})


def run(folder: Path, *, config: TrainConfig = CONFIG, **options: object) -> Trained:
    """Train on ten clips with features below `folder`."""
    return train(
        make_inputs(folder),
        folder / "manifest.csv",
        config=config,
        checkpoints=folder / "checkpoints",
        weights=folder / "weights",
        state=folder / "state",
        **options,  # type: ignore[arg-type]
    )


def test_callers_are_told_of_each_batch_and_epoch_of_each_model_and_later_of_their_scores(tmp_path):
    batches, epochs = [], []
    trained = run(
        tmp_path,
        on_batch=lambda *progress: batches.append(progress),
        on_epoch=lambda name, metrics: epochs.append((name, metrics)),
    )
    models = ("recurrent", "baseline")
    assert batches == [(name, done, 9) for done in range(1, 10) for name in models]  # 6 clips, 3 epochs
    assert epochs == [(name, trained.fits[name].history[epoch]) for epoch in range(3) for name in models]
    fit = trained.fits["recurrent"]
    assert trained.as_json()["recurrent"]["val_loss"] == fit.history[fit.best_epoch]["val"]["loss"]

    seen = []
    evaluation = evaluate(
        trained.checkpoints,
        tmp_path / "features/layer4",
        tmp_path / "manifest.csv",
        config=EvaluateConfig(num_resamples=10),
        on_batch=lambda *progress: seen.append(progress),
    )
    assert seen == [(name, 1, 1) for name in ("recurrent", "shuffled", "baseline")]
    assert [clip.clip_id for clip in evaluation.answers.clips] == ["c4", "c9"]
    assert evaluation.as_json()["recurrent"]["num_clips"] == 2
    assert evaluation.table.splitlines()[1].startswith("LSTM ")


def test_a_run_that_ended_in_an_error_goes_on_after_its_last_epoch_to_the_same_numbers(tmp_path):
    def stop(name: str, num_done: int, _: int) -> None:
        if (name, num_done) == ("recurrent", 5):
            raise KeyboardInterrupt

    undisturbed = run(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", on_batch=stop)
    batches = []
    assert run(tmp_path / "stopped", on_batch=lambda *done: batches.append(done)).fits == undisturbed.fits
    assert batches[0] == ("recurrent", 4, 9)
    assert not list((tmp_path / "stopped/state").glob("*.pt"))


def test_each_model_is_trained_alone_as_beside_the_other(tmp_path):
    both = run(tmp_path / "both")
    for name in ("recurrent", "baseline"):
        alone = run(tmp_path / name, models=(name,))
        assert alone.fits == {name: both.fits[name]}
        assert [folder.name for folder in alone.checkpoints.iterdir()] == [name]
        files = [trained.checkpoints / name / "model.safetensors" for trained in (alone, both)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_training_that_is_not_confirmed_is_kept_and_the_next_run_ends_at_once(tmp_path):
    class Refused(Exception):
        pass

    def refuse() -> None:
        raise Refused

    with pytest.raises(Refused):
        run(tmp_path, confirm=refuse, models=("recurrent",))
    assert not (tmp_path / "checkpoints").exists()
    batches = []
    again = run(tmp_path, models=("recurrent",), on_batch=lambda *done: batches.append(done))
    assert batches == []
    assert again.fits == run(tmp_path / "undisturbed", models=("recurrent",)).fits


@pytest.mark.parametrize("moved", ["manifest.csv", "features/layer4"])
def test_a_training_whose_input_changes_meanwhile_writes_no_checkpoint_and_is_kept(tmp_path, moved):
    def change() -> None:
        if moved == "manifest.csv":
            path = tmp_path / moved
            path.write_text(path.read_text().replace("9.0", "9.5"))
        else:
            shutil.move(tmp_path / "features", tmp_path / "before")
            make_view(tmp_path / "others", {"c0": 3})
            shutil.move(tmp_path / "others/features", tmp_path / "features")

    with pytest.raises(InputChangedError, match=rf"{moved} changed while the model trained"):
        run(tmp_path, confirm=change)
    assert not (tmp_path / "checkpoints").exists()
    assert len(list((tmp_path / "state").glob("*.pt"))) == 2  # of both models


def test_a_training_goes_on_whatever_the_columns_of_ones_own_say(tmp_path):
    def change() -> None:
        path = tmp_path / "manifest.csv"
        clips = [replace(clip, meta={"camera": clip.clip_id}) for clip in read_manifest(path)]
        write_manifest(path, clips)

    trained = run(tmp_path, confirm=change)
    evaluation = evaluate(
        trained.checkpoints,
        tmp_path / "features/layer4",
        tmp_path / "manifest.csv",
        config=EvaluateConfig(num_resamples=10),
    )
    assert evaluation.as_json()["recurrent"]["by"]["meta_camera"]["values"].keys() == {"c4", "c9"}
    assert "by" not in evaluation.as_json()["baseline"]
    assert "LSTM, by meta_camera" in evaluation.table


def test_the_threads_of_operations_are_those_of_the_config_while_a_model_trains(tmp_path):
    before, seen = torch.get_num_threads(), set[int]()
    config = CONFIG.model_copy(update={"intra_op_threads": before + 1})
    run(tmp_path, config=config, on_batch=lambda *_: seen.add(torch.get_num_threads()))
    assert seen == {before + 1}
    assert torch.get_num_threads() == before


def test_the_metric_of_the_model_and_both_controls_is_the_headline_of_an_evaluation(tmp_path):
    trained = run(tmp_path)
    evaluation = evaluate(
        trained.checkpoints,
        tmp_path / "features/layer4",
        tmp_path / "manifest.csv",
        config=EvaluateConfig(num_resamples=10),
    )
    scores = {name: score.values() for name, score in evaluation.scores.items()}
    assert evaluation.headline() == {
        "accuracy": scores["recurrent"]["accuracy"],
        "shuffled": scores["shuffled"]["accuracy"],
        "baseline": scores["baseline"]["accuracy"],
    }


def test_a_setting_of_evaluation_that_does_nothing_is_refused(tmp_path):
    trained = run(tmp_path)
    with pytest.raises(
        ConfigError, match="beam_size 3 does nothing: it needs task captioning or ctc; take it out"
    ):
        evaluate(
            trained.checkpoints,
            tmp_path / "features/layer4",
            tmp_path / "manifest.csv",
            config=EvaluateConfig(beam_size=3),
        )


def test_a_config_of_another_tap_than_the_features_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config's tap is 'layer3', but .*layer4 has features of 'layer4'"):
        run(tmp_path, config=CONFIG.model_copy(update={"tap": "layer3"}))


def test_a_split_without_features_is_named(tmp_path):
    trained = run(tmp_path)
    others = make_view(tmp_path / "others", {"c0": 3, "c1": 3})
    with pytest.raises(ManifestError, match=r"manifest\.csv has no test clips with features"):
        evaluate(trained.checkpoints, others, tmp_path / "manifest.csv")


@pytest.mark.parametrize(
    ("changes", "num_frames", "differing"),
    [
        ({"learning_rate": 0.1}, 3, "learning_rate"),
        ({"optimizer": "sgd"}, 3, "optimizer, momentum"),
        ({}, 4, "features"),
    ],
)
def test_a_model_is_not_compared_with_a_baseline_that_was_trained_in_another_way(
    tmp_path, changes, num_frames, differing
):
    run(tmp_path)
    clips = {f"c{number}": num_frames for number in range(10)}
    shutil.rmtree(tmp_path / "features")
    shutil.rmtree(tmp_path / "journal", ignore_errors=True)
    features = make_view(tmp_path, clips)
    train(
        features,
        tmp_path / "manifest.csv",
        config=TrainConfig.model_validate({**CONFIG.model_dump(), "hidden_size": 5, **changes}),
        models=("recurrent",),
        checkpoints=tmp_path / "checkpoints",
        state=tmp_path / "state",
    )
    with pytest.raises(UnequalCheckpointsError, match=rf"What differs: {differing}\.$"):
        evaluate(tmp_path / "checkpoints", features, tmp_path / "manifest.csv")


def test_another_hidden_size_of_the_model_leaves_its_baseline_comparable(tmp_path):
    run(tmp_path)
    trained = run(tmp_path, config=CONFIG.model_copy(update={"hidden_size": 5}), models=("recurrent",))
    evaluation = evaluate(
        trained.checkpoints,
        tmp_path / "features/layer4",
        tmp_path / "manifest.csv",
        config=EvaluateConfig(num_resamples=10),
    )
    assert evaluation.checkpoint.config.hidden_size == 5


def test_the_state_of_a_training_has_the_name_of_the_code_that_trains(tmp_path, monkeypatch):
    names = []

    class Stopped(Exception):
        pass

    def refuse() -> None:
        raise Stopped

    for digest in ("before an edit", "after it"):
        monkeypatch.setattr(identity, "code_digest", lambda _, digest=digest: digest)
        with pytest.raises(Stopped):
            run(tmp_path, models=("baseline",), confirm=refuse)
        names += sorted((tmp_path / "state").glob("*.pt"))
    assert len(set(names)) == 1


def members_of(folder: Path, *configs: TrainConfig) -> list[MemberConfig]:
    """Recurrent models with these configs, whose checkpoints go to folders below `folder`."""
    return [
        MemberConfig(f"m{n}", config, Path("manifest.csv"), checkpoint=folder / f"m{n}")
        for n, config in enumerate(configs)
    ]


def run_many(folder: Path, members: list[MemberConfig], **options: object) -> dict[str, Outcome]:
    """Train members on ten clips with features and manifests below `folder`."""
    return train_many(
        make_inputs(folder),
        [each._replace(manifest=folder / each.manifest) for each in members],
        weights=folder / "weights",
        state=folder / "state",
        **options,  # type: ignore[arg-type]
    )


def several() -> list[TrainConfig]:
    changes = (
        {},
        {"seed": 1},
        {"batch_size": 3},
        {"hidden_size": 5, "pooling": "avg"},
        {"task": "regression"},
    )
    return [TrainConfig.model_validate({**CONFIG.model_dump(), "intra_op_threads": 1, **c}) for c in changes]


def test_each_of_many_has_the_checkpoint_and_the_numbers_of_train(tmp_path):
    members = members_of(tmp_path / "many", *several())
    outcomes = run_many(tmp_path, members)
    assert list(outcomes) == [member.name for member in members]
    for member in members:
        alone = run(tmp_path, config=member.config, models=("recurrent",))
        outcome = outcomes[member.name]
        assert outcome.is_done
        assert repr(outcome.fit) == repr(alone.fits["recurrent"])
        for name in ("model.safetensors", "checkpoint.json"):
            file = alone.checkpoints / "recurrent" / name
            assert (member.checkpoint / name).read_bytes() == file.read_bytes()
        best = outcome.fit.history[outcome.fit.best_epoch]["val"]
        assert outcome.checkpoint.task.measure(outcome.predictions)(np.ones(2)) == best
    assert not list((tmp_path / "state").glob("*.pt"))
    modules = [id(part) for o in outcomes.values() for part in o.checkpoint.model.modules()]
    assert len(set(modules)) == len(modules)  # each checkpoint has a model of its own


def test_many_can_be_stopped_after_some_epochs_and_some_of_them_go_on(tmp_path):
    members = members_of(tmp_path / "many", *several())
    first = run_many(tmp_path, members, until=1)
    assert not any(outcome.is_done for outcome in first.values())
    assert all(len(outcome.fit.history) == 1 for outcome in first.values())
    assert not (tmp_path / "many").exists()
    assert len(list((tmp_path / "state").glob("*.pt"))) == len(members)
    epochs = []
    second = run_many(tmp_path, members[1:3], on_epoch=lambda name, _: epochs.append(name))
    assert sorted(epochs) == ["m1"] * 3 + ["m2"] * 3
    undisturbed = run_many(tmp_path / "undisturbed", members_of(tmp_path / "undisturbed", *several()))
    for name, outcome in second.items():
        assert repr(outcome.fit) == repr(undisturbed[name].fit)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.slow
def test_members_trained_in_processes_have_the_numbers_of_one_process(tmp_path, device):
    members = members_of(tmp_path / "alone", *several())
    alone = run_many(tmp_path / "alone", members, machine=Machine(device=device))
    told: dict[str, list[tuple[int, int]]] = defaultdict(list)
    epochs: dict[str, list[object]] = defaultdict(list)
    apart = run_many(
        tmp_path / "apart",
        members_of(tmp_path / "apart", *several()),
        machine=Machine(device=device, num_trainings=2),
        on_batch=lambda name, *batch: told[name].append(batch),
        on_epoch=lambda name, metrics: epochs[name].append(metrics),
    )
    for name, outcome in alone.items():
        assert repr(epochs[name]) == repr(outcome.fit.history)
        assert repr(apart[name].fit) == repr(outcome.fit)
        assert apart[name].is_done
        assert (tmp_path / "apart" / name / "checkpoint.json").exists()
        theirs = apart[name].checkpoint.model.state_dict()
        for key, value in outcome.checkpoint.model.state_dict().items():
            assert torch.equal(theirs[key], value)
        assert told[name] == [(number, told[name][-1][1]) for number in range(1, told[name][-1][1] + 1)]


def test_members_of_other_splits_have_the_numbers_of_train_on_theirs(tmp_path):
    features = make_inputs(tmp_path)
    clips = list(read_manifest(tmp_path / "manifest.csv").clips())
    manifests = [tmp_path / f"fold{number}.csv" for number in range(3)]
    for number, path in enumerate(manifests):  # two batches an epoch, one, and two
        order = ("train", "val", "test", *("train" if number != 1 else "test",) * 2)
        splits = [order[(place + number) % 5] for place in range(10)]
        write_manifest(path, [replace(clip, split=split) for clip, split in zip(clips, splits, strict=True)])
    members = [MemberConfig(path.stem, CONFIG, path) for path in manifests]
    places = {"weights": tmp_path / "weights", "state": tmp_path / "state"}
    outcomes = train_many(features, members, **places)
    for path in manifests:
        alone = train(features, path, config=CONFIG, checkpoints=tmp_path / path.stem, **places)
        assert outcomes[path.stem].fit == alone.fits["recurrent"]
        theirs = load_checkpoint(tmp_path / path.stem / "recurrent")
        assert outcomes[path.stem].checkpoint.inputs == theirs.inputs
        for key, value in outcomes[path.stem].checkpoint.model.state_dict().items():
            assert torch.equal(value, theirs.model.state_dict()[key])
    assert len({repr(outcome.fit) for outcome in outcomes.values()}) == 3


def test_members_that_differ_in_nothing_that_counts_are_trained_once(tmp_path):
    small, large = (CONFIG.model_copy(update={"hidden_size": size}) for size in (4, 8))
    members = [
        MemberConfig("small", small, Path("manifest.csv"), "baseline", tmp_path / "small"),
        MemberConfig("large", large, Path("manifest.csv"), "baseline", tmp_path / "large"),
    ]
    batches = []
    outcomes = run_many(tmp_path, members, on_batch=lambda *progress: batches.append(progress))
    assert batches == [(name, done, 9) for done in range(1, 10) for name in ("small", "large")]
    assert outcomes["small"].checkpoint.model is outcomes["large"].checkpoint.model
    assert [outcomes[name].checkpoint.config.hidden_size for name in outcomes] == [4, 8]
    files = [tmp_path / name / "model.safetensors" for name in outcomes]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_members_that_do_not_fit_into_memory_together_are_trained_one_after_the_other(tmp_path, monkeypatch):
    expected = run_many(tmp_path / "together", members_of(tmp_path / "together", *several()))
    monkeypatch.setattr(Shared, "free_bytes", lambda _: 0)
    batches = []
    outcomes = run_many(
        tmp_path, members_of(tmp_path / "apart", *several()), on_batch=lambda name, *_: batches.append(name)
    )
    assert len(list(groupby(batches))) == len(outcomes)
    assert {name: repr(each.fit) for name, each in outcomes.items()} == {
        name: repr(each.fit) for name, each in expected.items()
    }


def test_a_member_that_fails_leaves_the_others_and_is_named_by_train(tmp_path, monkeypatch):
    build = Classification.build_model

    def diverged(task: Classification, name: str, config: TrainConfig, **options: object) -> torch.nn.Module:
        model = build(task, name, config, **options)
        if config.hidden_size == 5:
            torch.nn.init.constant_(model.head.weight, torch.inf)
        return model

    monkeypatch.setattr(Classification, "build_model", diverged)
    configs = [CONFIG, CONFIG.model_copy(update={"hidden_size": 5})]
    outcomes = run_many(tmp_path, members_of(tmp_path / "many", *configs))
    assert outcomes["m0"].failure is None
    assert (tmp_path / "many/m0").exists()
    assert isinstance(outcomes["m1"].failure, NonFiniteError)
    assert outcomes["m1"].is_done
    assert outcomes["m1"].predictions is None
    assert not (tmp_path / "many/m1").exists()
    with pytest.raises(NonFiniteError, match="The loss is nan in epoch 0"):
        run(tmp_path, config=configs[1])


def test_clips_that_are_read_in_chunks_have_the_scores_that_they_have_in_one_piece(tmp_path):
    trained = run(tmp_path)
    seen = []
    pieces, chunks = (
        evaluate(
            trained.checkpoints,
            tmp_path / "features/layer4",
            tmp_path / "manifest.csv",
            config=EvaluateConfig(num_resamples=10, chunk_frames=chunk_frames),
            on_batch=lambda *progress: seen.append(progress),
        )
        for chunk_frames in (None, 2)
    )
    for name, score in pieces.scores.items():
        assert chunks.scores[name].values() == pytest.approx(score.values(), rel=1e-5)
    models = ("recurrent", "shuffled", "baseline")
    assert seen == [
        *((name, 1, 1) for name in models),  # a batch
        *((name, done, 2) for name in models for done in (1, 2)),  # two clips
    ]


def test_a_split_is_answered_as_evaluate_answers_about_it(tmp_path):
    trained = run(tmp_path, config=CONFIG.model_copy(update={"window": 2}))
    inputs = (tmp_path / "features/layer4", tmp_path / "manifest.csv")
    answers = []
    for chunk_frames in (None, 2):
        config = EvaluateConfig(num_resamples=10, chunk_frames=chunk_frames)
        expected = evaluate(trained.checkpoints, *inputs, config=config).answers
        found = answer_split(load_checkpoint(trained.checkpoints / "recurrent"), *inputs, config=config)
        torch.testing.assert_close(found.outputs, expected.outputs)
        answers.append(torch.stack(found.outputs))
    assert not torch.allclose(*answers)  # of windows, and of the clips in one piece


@pytest.mark.parametrize("task", ["multilabel", "frame_multilabel"])
def test_several_labels_are_answered_by_each_models_own_thresholds(tmp_path, task):
    shown = (FrameLabel(0.0, 0.07, "left"), FrameLabel(0.03, 0.12, "right"))
    labels = ("left|right", "left", None, "left|right", "right")
    clips = [
        make_clip(
            f"c{number}", split=SPLITS[number % 5], label=labels[number % 5], frame_labels=shown[number % 2 :]
        )
        for number in range(10)
    ]
    features = make_view(tmp_path, {clip.clip_id: 3 for clip in clips})
    write_manifest(tmp_path / "manifest.csv", clips)
    config = CONFIG.model_copy(
        update={"task": task, "balanced_sampling": True, "focal_gamma": 1.0, "class_weights": "balanced"}
    )
    places = {"weights": tmp_path, "state": tmp_path / "state"}
    paths = (features, tmp_path / "manifest.csv")
    trained = train(*paths, config=config, checkpoints=tmp_path / "checkpoints", **places)
    plain = MemberConfig("plain", config.model_copy(update={"balanced_sampling": False}), paths[1])
    together = train_many(features, [plain, MemberConfig("mine", config, paths[1])], **places)
    assert together["mine"].fit.history == trained.fits["recurrent"].history
    assert together["plain"].fit.history != trained.fits["recurrent"].history

    evaluation = evaluate(tmp_path / "checkpoints", *paths, config=EvaluateConfig(num_resamples=20))
    for name in evaluation.scores:
        model = "baseline" if name == "baseline" else "recurrent"
        thresholds = load_checkpoint(tmp_path / "checkpoints" / model).task.thresholds
        rows = [row for row in evaluation.predictions.to_pylist() if row["model"] == name]
        assert len(rows) == (2 if task == "multilabel" else 6)
        for row in rows:
            said = np.array(row["probabilities"]) >= np.float32(thresholds)
            assert row["answer"] == np.array(["left", "right"])[said].tolist()
    assert evaluation.headline().keys() == {"mAP", "shuffled", "baseline"}
    assert evaluation.table.split()[:4] == [
        "loss",
        "mAP",
        *(["mAP", "25"] if task != "multilabel" else ["micro", "f1"]),
    ]
