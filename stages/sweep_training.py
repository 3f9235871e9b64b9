"""Trains the members of a sweep. What is trained is kept, and the next sweep finds it."""

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.errors import NonFiniteError, NonFiniteFeaturesError
from pipeline.learn.checkpoint import Checkpoint, load_checkpoint
from pipeline.learn.comparison import answer_val
from pipeline.learn.run import OnBatch, input_digests, run_digest, train
from pipeline.learn.tasks import Predictions, Task
from pipeline.learn.training import Metrics
from pipeline.settings.machine import Machine
from pipeline.settings.training import ModelName
from stages.members import SweepMember
from stages.places import FEATURES, training_folder, weights_path
from stages.train import write_trained

OnEpoch = Callable[[str, Sequence[float]], None]  # of a member's name, and the val loss of each of its epochs

_PROBE_SECONDS = 3.0


class _Reached(Exception):
    """A member has had the epochs that it was to have."""


@dataclass
class Trainings:
    """The members of a sweep, by their names, and how far each is trained."""

    members: Mapping[str, SweepMember]
    machine: Machine
    end: float = math.inf  # of time.monotonic(): after it no training starts
    on_epoch: OnEpoch = lambda *_: None
    val_losses: dict[str, list[float]] = field(default_factory=dict)  # of each epoch, by member
    finished: list[str] = field(default_factory=list)  # members that were trained to their end
    failures: dict[str, str] = field(default_factory=dict)  # why a member can't be trained

    def train_until(self, names: Sequence[str], epochs: int | None) -> dict[str, list[float]]:
        """Train these members until each has had so many epochs, None: to its end; see `halve`.

        Raises as `pipeline.train` does, but for a member whose loss is not finite: this one fails alone.
        """
        trained = []
        for name in names:
            if self.is_done(name):
                self._note(name, self._read_val_losses(name)[:epochs])
            elif name in self.failures or time.monotonic() > self.end:
                continue
            else:
                self._train(name, "recurrent", epochs)
            if name not in self.failures:
                trained.append(name)
                self.finished += [name] if epochs is None else []
        return {name: self.val_losses[name] for name in trained}

    def train_baseline(self, name: str) -> None:
        """Train the baseline of a member, unless it is there."""
        if not self.is_done(name, "baseline"):
            self._train(name, "baseline", None)

    def folder(self, name: str) -> Path:
        """Where a member's results are, under the names that they have in a project."""
        member = self.members[name]
        digest = run_digest(member.config, "recurrent", self._inputs[self.features(name), member.manifest])
        return training_folder() / "sweeps" / digest

    def features(self, name: str) -> Path:
        """The features that a member is trained on."""
        return FEATURES / self.members[name].config.tap

    def task_and_loss(self, name: str, model: ModelName = "recurrent") -> tuple[Task, float]:
        """The task of a member that was trained to its end, and its val loss."""
        checkpoint = self._checkpoint(name, model)
        return checkpoint.task, checkpoint.metrics["loss"] or math.nan

    def predictions(self, name: str, model: ModelName = "recurrent") -> Predictions:
        """Its answers about the val clips."""
        return answer_val(
            self._checkpoint(name, model),
            self.features(name),
            self.members[name].manifest,
            machine=self.machine,
        )

    def seconds_per_epoch(self, name: str) -> float:
        """How long an epoch of this member takes when it trains alone, by a few seconds of it."""
        times: list[float] = []
        num_batches = 0

        def note_batch(_: str, __: int, num_total: int) -> None:
            nonlocal num_batches
            num_batches = num_total
            times.append(time.monotonic())
            if times[-1] - times[0] > _PROBE_SECONDS:
                raise _Reached

        self._train(name, "recurrent", None, on_batch=note_batch)
        per_batch = (times[-1] - times[0]) / max(1, len(times) - 1) if times else 0.0
        return per_batch * num_batches / self.members[name].config.epochs

    def _checkpoint(self, name: str, model: ModelName) -> Checkpoint:
        return load_checkpoint(self.folder(name) / "checkpoints" / model)

    @cached_property
    def _inputs(self) -> dict[tuple[Path, Path], dict[str, str]]:
        """The digests of features and manifests, as they are at the beginning."""
        pairs = {(self.features(name), member.manifest) for name, member in self.members.items()}
        return {pair: input_digests(*pair) for pair in pairs}

    def is_done(self, name: str, model: ModelName = "recurrent") -> bool:
        """Whether a member, or its baseline, was trained to its end, now or before."""
        return (self.folder(name) / f"reports/{model}.json").exists()

    def _train(
        self, name: str, model: ModelName, epochs: int | None, *, on_batch: OnBatch = lambda *_: None
    ) -> None:
        member, folder = self.members[name], self.folder(name)
        losses: list[float] = []

        def note_epoch(_: str, metrics: Metrics) -> None:
            losses.append(metrics["val"]["loss"])
            if model == "recurrent":
                self._note(name, losses)
            if len(losses) == epochs:
                raise _Reached

        try:
            trained = train(
                self.features(name),
                member.manifest,
                config=member.config,
                machine=self.machine,
                models=(model,),
                checkpoints=folder / "checkpoints",
                weights=weights_path(member.params.weights.arch),
                state=training_folder(),
                on_batch=on_batch,
                on_epoch=note_epoch,
            )
        except _Reached:
            return
        except NonFiniteFeaturesError:
            raise
        except NonFiniteError as error:
            self.failures[name] = str(error)
            return
        write_trained(model, trained.fits[model], task=member.config.task, folder=folder)

    def _note(self, name: str, losses: Sequence[float]) -> None:
        self.val_losses[name] = list(losses)
        self.on_epoch(name, losses)

    def _read_val_losses(self, name: str) -> list[float]:
        with (self.folder(name) / "dvclive/train/recurrent/curves/loss.csv").open(newline="") as file:
            return [float(row["val"] or "nan") for row in csv.DictReader(file)]
