"""`train` and `evaluate` as functions: what a caller is told, and what is refused."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, ManifestError
from pipeline.learn.comparison import evaluate
from pipeline.learn.run import Trained, train
from pipeline.manifest import write_manifest
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.training import TrainConfig
from tests.support.features import make_view
from tests.support.toy import make_clip

SPLITS = ("train", "train", "train", "val", "test")
CONFIG = TrainConfig(projection=3, hidden_size=4, epochs=3, batch_size=2)


def run(folder: Path, *, config: TrainConfig = CONFIG, **options: object) -> Trained:
    """Train on ten clips with features below `folder`."""
    clips = [
        make_clip(f"c{number}", split=SPLITS[number % 5], label=("left", "right")[number // 5])
        for number in range(10)
    ]
    write_manifest(folder / "manifest.csv", clips)
    features = make_view(folder, {clip.clip_id: 3 for clip in clips})
    return train(
        features,
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
    assert batches == [(name, done, 9) for name in models for done in range(1, 10)]  # 6 clips, 3 epochs
    assert epochs == [(name, metrics) for name in models for metrics in trained.fits[name].history]
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
    assert not [path for path in (tmp_path / "stopped/state").iterdir() if path.is_dir()]


def test_a_config_of_another_tap_than_the_features_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config's tap is 'layer3', but .*layer4 has features of 'layer4'"):
        run(tmp_path, config=CONFIG.model_copy(update={"tap": "layer3"}))


def test_a_split_without_features_is_named(tmp_path):
    trained = run(tmp_path)
    others = make_view(tmp_path / "others", {"c0": 3, "c1": 3})
    with pytest.raises(ManifestError, match=r"manifest\.csv has no test clips with features"):
        evaluate(trained.checkpoints, others, tmp_path / "manifest.csv")
