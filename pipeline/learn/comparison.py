"""Comparison: a trained model on clips it was not trained on, beside its two controls.

The controls are the same model on frames in a shuffled order, which tells whether it uses their order, and
the baseline, which can't see order.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.contract import CENTER
from pipeline.errors import ConfigError, ManifestError, UnequalCheckpointsError, few
from pipeline.learn.answering import Answering, mean_predictions
from pipeline.learn.checkpoint import Checkpoint, check_features, load_checkpoint
from pipeline.learn.evaluation import (
    Score,
    baseline_sentence,
    comparison_table,
    order_sentence,
    prediction_table,
    score_predictions,
)
from pipeline.learn.metrics import json_numbers
from pipeline.learn.models import SequenceModel
from pipeline.learn.streaming import Features, Loader, make_loader, open_views, with_features
from pipeline.learn.subgroups import Subgroups, score_subgroups
from pipeline.learn.tasks import Predictions
from pipeline.manifest import Clip, read_manifest
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.machine import Machine
from pipeline.settings.training import MODELS, LoaderConfig, TrainConfig
from pipeline.settings.unused import explain_unused
from pipeline.system.devices import resolve_device

# Of a model's name, the number of batches (with chunk_frames, of clips) done, and of all.
OnBatch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FrameWeights:
    """How much each frame of a clip counts in the model's answer."""

    clip_id: str
    frame_seconds: np.ndarray  # (T,) float64: time in the source
    weights: np.ndarray  # (T,) float32, sum 1
    answer: str  # for people


@dataclass(frozen=True)
class Evaluation:
    """How a model and its controls did on the clips of a split."""

    scores: dict[str, Score]  # of recurrent, shuffled and baseline: metrics with 95 % intervals
    labels: dict[str, str]  # the same three for people, e.g. `LSTM, frames shuffled`
    subgroups: tuple[Subgroups, ...]  # scores of the recurrent model, a part for each column meta_<name>
    table: str  # for people: a row a model, whether the order of frames helps, and the subgroups
    checkpoint: Checkpoint  # of the recurrent model
    answers: Predictions  # its answers
    predictions: pa.Table  # a row for each answer of all three; see `prediction_table`
    frame_weights: tuple[FrameWeights, ...]  # of the first batch, where attention chooses among frames

    def as_json(self) -> dict[str, dict[str, Any]]:
        """The metrics by model, each with the ends of its interval; None for what is not defined.

        Below `by`, the recurrent model has its metrics for each value of the columns meta_<name>, if the
        clips have any.
        """
        scores = {name: score.as_json() for name, score in self.scores.items()}
        if self.subgroups:
            scores["recurrent"]["by"] = {part.column: part.as_json() for part in self.subgroups}
        return scores

    def headline(self) -> dict[str, float | None]:
        """The task's headline metric of the model, under its own name, and of both controls.

        None stands for what is not defined.
        """
        metric = self.checkpoint.task.facts.headline
        values = {name: score.values() for name, score in self.scores.items()}
        return json_numbers(
            {
                metric: values["recurrent"][metric],
                "shuffled": values["shuffled"][metric],
                "baseline": values["baseline"][metric],
            }
        )


def evaluate(
    checkpoints: str | Path,
    features: str | Path,
    manifest: str | Path,
    *,
    config: EvaluateConfig = EvaluateConfig(),
    machine: Machine = Machine(),
    on_batch: OnBatch = lambda *_: None,
) -> Evaluation:
    """Measure trained models on the clips of one split.

    Args:
        checkpoints: the folder that `train` wrote, with the checkpoints of the model and of the baseline.
        features: the features of the tap that they were trained on, such as features/layer4. Those of
            `config.views` are beside them, such as features/layer4@flip, and so are those of their streams.
        manifest: a CSV or Parquet manifest.
        config: how to measure; by default on the test split.
        machine: device and threads.
        on_batch: called after each batch with the model's name, the number of batches done and of all.

    Raises:
        MissingFeaturesError: when there are no features.
        ContractError: for features that were made in another way than those of the training.
        ManifestError: when the manifest is wrong, or its clips lack what the task needs.
        ConfigError: for a config that does not fit the task or the machine.
        NonFiniteError: for features or answers that are infinite or NaN.
        UnequalCheckpointsError: for a baseline of other settings, features or manifest than the model's.
        PipelineError: when there is no checkpoint, or one of another version.
    """
    found = {name: load_checkpoint(Path(checkpoints) / name) for name in MODELS}
    _check_equal(**found)
    loaded = {name: as_asked(checkpoint, config) for name, checkpoint in found.items()}
    recurrent, baseline = loaded["recurrent"], loaded["baseline"]
    if problems := explain_unused(config, config.unused(recurrent.config)):
        raise ConfigError(f"{problems}.")
    task, device = recurrent.task, resolve_device(machine.device)
    with open_views(Path(features), config.views, recurrent.streams) as views:
        center = views[CENTER]
        for checkpoint in loaded.values():
            check_features(checkpoint, center)
        clips = with_features(read_manifest(Path(manifest)).clips(split=config.split), center)
        if not clips:
            raise ManifestError(f"{manifest} has no {config.split} clips with features.")
        task.check(clips)

        def answer(name: str, checkpoint: Checkpoint, *, shuffle_seed: int | None = None) -> Predictions:
            return _answer_views(
                checkpoint,
                [views[view] for view in config.views],
                clips,
                batches=_batches(checkpoint, config),
                chunk_frames=config.chunk_frames,
                machine=machine,
                shuffle_seed=shuffle_seed,
                on_batch=partial(on_batch, name),
            )

        answers = {
            "recurrent": answer("recurrent", recurrent),
            "shuffled": answer("shuffled", recurrent, shuffle_seed=config.seed),
            "baseline": answer("baseline", baseline),
        }
        # With chunks, a clip may not fit into memory, nor its weights into a picture.
        frame_weights: tuple[FrameWeights, ...] = ()
        if not config.chunk_frames:
            batches = _batches(recurrent, config)
            loader = make_loader(center, clips, batches, device=device, num_threads=machine.num_readers)
            frame_weights = _frame_weights(recurrent, loader)
    tasks = {"recurrent": task, "shuffled": task, "baseline": baseline.task}
    scores = {
        name: score_predictions(
            predictions, task=tasks[name], num_resamples=config.num_resamples, seed=config.seed
        )
        for name, predictions in answers.items()
    }
    subgroups = score_subgroups(
        answers["recurrent"], task=task, num_resamples=config.num_resamples, seed=config.seed
    )
    labels = _labels(recurrent)
    monitor = recurrent.config.resolved_monitor
    model, label = scores["recurrent"], labels["baseline"]
    sentences = [
        baseline_sentence(model, scores["baseline"], label=label, task=task, monitor=monitor),
        order_sentence(model, scores["shuffled"], task=task, monitor=monitor),
    ]
    table = comparison_table({labels[name]: result for name, result in scores.items()})
    parts = [table, *(part.table(label=labels["recurrent"]) for part in subgroups), "\n".join(sentences)]
    return Evaluation(
        scores,
        labels,
        subgroups,
        "\n\n".join(parts),
        recurrent,
        answers["recurrent"],
        prediction_table(answers, task=task, own_tasks=tasks),
        frame_weights,
    )


def answer_split(
    checkpoint: Checkpoint,
    features: str | Path,
    manifest: str | Path,
    *,
    config: EvaluateConfig = EvaluateConfig(split="val"),
    machine: Machine = Machine(),
) -> Predictions:
    """A trained model's answers about the clips of a split, as `evaluate` takes them, in batches as trained.

    Raises as `evaluate` does.
    """
    trained = as_asked(checkpoint, config)
    with open_views(Path(features), config.views, trained.streams) as views:
        center = views[CENTER]
        check_features(trained, center)
        clips = with_features(read_manifest(Path(manifest)).clips(split=config.split), center)
        if not clips:
            raise ManifestError(f"{manifest} has no {config.split} clips with features.")
        trained.task.check(clips)
        return _answer_views(
            trained,
            [views[view] for view in config.views],
            clips,
            batches=trained.config,
            chunk_frames=config.chunk_frames,
            machine=machine,
        )


def _batches(checkpoint: Checkpoint, config: EvaluateConfig) -> TrainConfig:
    return checkpoint.config.model_copy(update={"batch_size": config.batch_size})


def _answer_views(
    checkpoint: Checkpoint,
    views: Sequence[Features],
    clips: Sequence[Clip],
    *,
    batches: LoaderConfig,
    chunk_frames: int | None,
    machine: Machine,
    shuffle_seed: int | None = None,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> Predictions:
    """A model's answers about clips, each the mean over the views that have the clip."""
    device = resolve_device(machine.device)
    model = checkpoint.model.to(device)
    loaders = [
        make_loader(view, with_features(clips, view), batches, device=device, num_threads=machine.num_readers)
        for view in views
    ]
    number = sum(len(loader.clips) if chunk_frames else len(loader) for loader in loaders)
    numbers, found = itertools.count(1), []
    for loader in loaders:
        answering = Answering(model, task=checkpoint.task, device=device, shuffle_seed=shuffle_seed)
        if chunk_frames:
            for clip in loader.clips:
                answering.add_clip(clip, loader.features, chunk_frames=chunk_frames)
                on_batch(next(numbers), number)
        else:
            for batch in loader.epoch():
                answering.add(batch)
                on_batch(next(numbers), number)
        found.append(answering.predictions())
    return mean_predictions(found, task=checkpoint.task)


def _check_equal(*, recurrent: Checkpoint, baseline: Checkpoint) -> None:
    """Raise UnequalCheckpointsError unless both models were trained in one way on the same clips."""
    ours, theirs = (
        {**model.config.live("baseline"), **model.inputs, "task": model.task.tuned(None).describe()}
        for model in (recurrent, baseline)
    )
    if differing := [key for key in ours | theirs if ours.get(key) != theirs.get(key)]:
        raise UnequalCheckpointsError(
            "The baseline was trained in another way than the model, so they can't be compared. What differs:"
            f" {few(differing)}."
        )


def as_asked(checkpoint: Checkpoint, config: EvaluateConfig) -> Checkpoint:
    """The checkpoint, its task answering as the config says where the config says something."""
    names = ("beam_size", "length_power", "min_seconds")
    options = {name: value for name in names if (value := getattr(config, name)) is not None}
    return replace(checkpoint, task=checkpoint.task.with_options(**options)) if options else checkpoint


@torch.inference_mode()
def _frame_weights(checkpoint: Checkpoint, loader: Loader) -> tuple[FrameWeights, ...]:
    """Those of the first batch's clips; none, where no attention chooses among frames."""
    model, task = checkpoint.model, checkpoint.task
    if not isinstance(model, SequenceModel) or not model.has_attention:
        return ()
    batch = next(loader.epoch())
    weights = model.attention(batch.maps, batch.lengths).sum(dim=2).cpu()  # (B, T)
    outputs = task.run_model(model, batch).cpu()
    rows = zip(batch.clips, batch.lengths.tolist(), batch.frame_seconds, weights, outputs, strict=True)
    return tuple(
        FrameWeights(
            clip.clip_id,
            seconds[:length].numpy(),
            frame_weights[:length].numpy(),
            answer="; ".join(", ".join(map(str, row.values())) for row in task.render(output, seconds)),
        )
        for clip, length, seconds, frame_weights, output in rows
    )


def _labels(recurrent: Checkpoint) -> dict[str, str]:
    label = recurrent.config.label
    return {
        "recurrent": label,
        "shuffled": f"{label}, frames shuffled",
        "baseline": recurrent.task.baseline_label,
    }
