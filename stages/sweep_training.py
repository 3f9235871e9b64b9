"""Trains the members of a sweep. What is trained is kept, and the next sweep finds it."""

import csv
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from pipeline.errors import few
from pipeline.learn.checkpoint import load_checkpoint, save_checkpoint
from pipeline.learn.comparison import answer_split
from pipeline.learn.identity import input_digests, refuse_changes, run_digest, state_path
from pipeline.learn.member import Metrics
from pipeline.learn.processes import OnBatch
from pipeline.learn.run import Outcome, train_many
from pipeline.learn.tasks import Predictions, Task
from pipeline.settings.machine import Machine
from pipeline.settings.training import MemberConfig, ModelName
from stages.members import SweepMember
from stages.places import FEATURES, training_folder, weights_path
from stages.train import write_trained

log = logging.getLogger(__name__)

OnEpoch = Callable[[str, Sequence[float]], None]  # of a member's name, and the val loss of each of its epochs

_PROBE_SECONDS = 3.0


@dataclass(frozen=True)
class Answers:
    """What a trained model says about the val clips."""

    task: Task
    predictions: Predictions
    loss: float


class _Probed(Exception):
    """A training ran for as long as it takes to know its speed."""


@dataclass
class Trainings:
    """The members of a sweep, by their names, and how far each is trained."""

    members: Mapping[str, SweepMember]
    machine: Machine
    on_epoch: OnEpoch = lambda *_: None
    val_losses: dict[str, list[float]] = field(default_factory=dict)  # of each epoch, by member
    finished: list[str] = field(default_factory=list)  # members that were trained to their end
    failures: dict[str, str] = field(default_factory=dict)  # why a member can't be trained
    _digests: dict[tuple[Path, Path, tuple[str, ...]], dict[str, str]] = field(default_factory=dict)
    _answers: dict[tuple[str, ModelName], Answers] = field(default_factory=dict)

    def train_until(self, names: Sequence[str], epochs: int | None) -> dict[str, list[float]]:
        """Train these members until each has had so many epochs, None: to its end; see `halve`.

        Raises as `pipeline.train` does, but for a member whose loss is not finite: this one fails alone.
        """
        trained = [name for name in names if self.is_done(name)]
        for name in trained:
            self._note(name, self._read_val_losses(name)[:epochs])
        self.finished += trained if epochs is None else []
        for part in self._parts([name for name in names if name not in {*trained, *self.failures}]):
            self._train(part, "recurrent", epochs)
            part = [name for name in part if name not in self.failures]
            trained += part
            self.finished += part if epochs is None else []
        return {name: self.val_losses[name] for name in trained}

    def train_baselines(self, names: Sequence[str]) -> None:
        """Train the baselines of members, but for those that are there."""
        for part in self._parts([name for name in names if not self.is_done(name, "baseline")]):
            log.info("Training the baseline of %s.", few(part))
            self._train(part, "baseline", None)

    def answers(self, name: str, model: ModelName = "recurrent") -> Answers:
        """Those of a member that was trained to its end, or of its baseline."""
        if (name, model) not in self._answers:
            checkpoint = load_checkpoint(self.folder(name) / "checkpoints" / model)
            manifest = self.members[name].manifest
            predictions = answer_split(checkpoint, self.features(name), manifest, machine=self.machine)
            loss = checkpoint.metrics["loss"]
            self._answers[name, model] = Answers(
                checkpoint.task, predictions, math.inf if loss is None else loss
            )
        return self._answers[name, model]

    def is_done(self, name: str, model: ModelName = "recurrent") -> bool:
        """Whether a member, or its baseline, was trained to its end, now or before."""
        return (self.folder(name) / f"reports/{model}.json").exists()

    def folder(self, name: str) -> Path:
        """Where a member's results are, under the names that they have in a project."""
        digest = run_digest(self.members[name].config, "recurrent", self._inputs(name))
        return training_folder() / "sweeps" / digest

    def features(self, name: str) -> Path:
        """The features that a member is trained on."""
        return FEATURES / self.members[name].config.tap

    def seconds(self, names: Sequence[str]) -> float:
        """How long these members take to their end, by the first seconds of all that train together."""
        return sum(map(self._seconds, self._parts(names)))

    def _seconds(self, names: Sequence[str]) -> float:
        times: list[float] = []
        num_left: dict[str, int] = {}  # batches, by member

        def note_batch(name: str, num_done: int, num_total: int) -> None:
            times.append(time.monotonic())
            num_left[name] = num_total - num_done
            if times[-1] - times[0] > _PROBE_SECONDS:
                raise _Probed

        try:
            self._train(names, "recurrent", None, on_batch=note_batch)
        except _Probed:
            # Members of other batch sizes, for example, have not begun: they count as the mean of the others.
            num_batches = fmean(num_left.values()) * len(names)
            return (times[-1] - times[0]) / (len(times) - 1) * num_batches
        return 0.0

    def _inputs(self, name: str) -> dict[str, str]:
        """The digests of a member's features and manifest, as they are when they are first asked for."""
        key = self.features(name), self.members[name].manifest, self._streams(name)
        if key not in self._digests:
            self._digests[key] = input_digests(*key)
        return self._digests[key]

    def _streams(self, name: str) -> tuple[str, ...]:
        """The taps that a member reads beside its own."""
        return tuple(stream.tap for stream in self.members[name].config.streams)

    def _parts(self, names: Sequence[str]) -> list[list[str]]:
        """The members that train together: those of the same features."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name in names:
            groups.setdefault((self.features(name), self._streams(name)), []).append(name)
        return list(groups.values())

    def _train(
        self,
        names: Sequence[str],
        model: ModelName,
        epochs: int | None,
        *,
        on_batch: OnBatch = lambda *_: None,
    ) -> None:
        """Train members of the same features, or their baselines; keep what is at its end."""
        losses: dict[str, list[float]] = {name: [] for name in names}

        def note_epoch(name: str, metrics: Metrics) -> None:
            losses[name].append(metrics["val"]["loss"])
            if model == "recurrent":
                self._note(name, losses[name][:epochs])

        features, first = self.features(names[0]), self.members[names[0]]
        manifests = {name: self.members[name].manifest for name in names}
        inputs = {name: self._inputs(name) for name in names}
        outcomes = train_many(
            features,
            [MemberConfig(name, self.members[name].config, manifests[name], model) for name in names],
            until=epochs,
            machine=self.machine,
            weights=weights_path(first.params.weights.arch),
            state=training_folder(),
            on_batch=on_batch,
            on_epoch=note_epoch,
        )
        streams = self._streams(names[0])
        now = {path: input_digests(features, path, streams) for path in set(manifests.values())}
        for name, outcome in outcomes.items():
            refuse_changes(inputs[name], now[manifests[name]])
            if outcome.failure:
                log.warning("%s: %s", name, outcome.failure)
                self.failures[name] = "its loss is not finite"
            elif outcome.is_done:
                self._keep(name, model, outcome)
                # Last: until everything is written, a sweep that is killed needs it.
                config = self.members[name].config
                state_path(training_folder(), config, model, inputs[name]).unlink(missing_ok=True)

    def _keep(self, name: str, model: ModelName, outcome: Outcome) -> None:
        """Write the results of a model that was trained to its end."""
        checkpoint, folder = outcome.checkpoint, self.folder(name)
        path = folder / "checkpoints" / model
        shutil.rmtree(path, ignore_errors=True)  # of a sweep that was killed here
        save_checkpoint(path, checkpoint)
        write_trained(model, outcome.fit, task=checkpoint.task.name, folder=folder)
        if outcome.predictions:
            loss = outcome.fit.history[outcome.fit.best_epoch]["val"]["loss"]
            self._answers[name, model] = Answers(checkpoint.task, outcome.predictions, loss)

    def _note(self, name: str, losses: Sequence[float]) -> None:
        self.val_losses[name] = list(losses)
        self.on_epoch(name, losses)

    def _read_val_losses(self, name: str) -> list[float]:
        with (self.folder(name) / "dvclive/train/recurrent/curves/loss.csv").open(newline="") as file:
            return [float(row["val"] or "nan") for row in csv.DictReader(file)]
