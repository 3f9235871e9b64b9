"""A member: one model in training, with all that is its own. Its state is kept after each epoch."""

import io
import logging
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import NonFiniteError
from pipeline.learn.answering import Answering, answer_batches
from pipeline.learn.models.augment import Augment, Changes
from pipeline.learn.models.draws import ModelDraws
from pipeline.learn.optimisation import learning_rate_share, make_optimizer, resolve_precision
from pipeline.learn.streaming import Batch, Loader
from pipeline.learn.tasks import Predictions, Task
from pipeline.manifest import Clip
from pipeline.settings.optimisation import PRECISIONS
from pipeline.settings.training import TrainConfig
from pipeline.system.files import write_atomically

log = logging.getLogger(__name__)

_BATCHES_PER_CHECK = 50  # of losses: each check waits for the GPU


Metrics = dict[str, dict[str, float]]  # of one epoch: {"train": {"loss": ...}, "val": {"loss": ...}}


@dataclass(frozen=True)
class Fit:
    """The result of training a model."""

    history: list[Metrics]  # one entry an epoch
    best_epoch: int  # counted from 0; the model has its weights


class Member:
    """A model in training, and all that belongs to it alone.

    After each epoch its state goes to `state_path`. If that file exists, training continues after its last
    epoch, to the same numbers as without the interruption.

    Raises ConfigError for a precision that the device does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        task: Task,
        train: Loader,
        val: Loader,
        config: TrainConfig,
        device: torch.device,
        state_path: Path,
    ) -> None:
        self._dtype = resolve_precision(config, device)
        self.model = model.to(device)
        self.task = task
        self.train, self.val = train, val
        self.config = config
        self.device = device
        self.state_path = state_path
        self.history: list[Metrics] = []
        self.failure: NonFiniteError | None = None  # it ended the training
        # Autocast has one cache of weights for all threads, which the first one to leave empties.
        self._draws = ModelDraws(model, device, in_turn=self._dtype != torch.float32)
        self._augment = next((each for each in model.modules() if isinstance(each, Augment)), None)
        if self._augment:
            self._augment.mixes = task.facts.has_mean_targets
        self._optimizer = make_optimizer(model, config)
        self._scaler = torch.amp.GradScaler(device.type, enabled=PRECISIONS[config.precision].scales_loss)
        self._best_weights: dict[str, Tensor] = {}
        self._best_predictions: Predictions | None = None  # None: they are of an epoch before a resume
        self._rows: list[tuple[Tensor, Tensor]] = []  # of this epoch's batches, for its metrics
        if state := _load_state(state_path, model, device=device):
            self._resume(state)

    @property
    def epoch(self) -> int:
        """The next epoch, counted from 0."""
        return len(self.history)

    @property
    def num_batches_done(self) -> int:
        """Batches of all epochs so far, those before a resume included."""
        return self.epoch * len(self.train) + len(self._rows)

    @property
    def num_batches(self) -> int:
        """Batches of a training to its end, if patience does not end it."""
        return self.config.epochs * len(self.train)

    @property
    def size_bytes(self) -> int:
        """The memory that it takes while others are trained."""
        # Of each weight: itself, gradient, two moments, that of the best epoch, and what is written.
        return 6 * sum(value.nbytes for value in self.model.parameters())

    @property
    def best_epoch(self) -> int:
        """The best epoch so far, counted from 0."""
        return best_epoch(self.history, task=self.task, monitor=self.config.resolved_monitor)

    @property
    def is_done(self) -> bool:
        """Whether all epochs are done, or patience is at its end, or the training failed."""
        patience = self.config.patience
        return (
            self.failure is not None
            or self.epoch >= self.config.epochs
            or (patience is not None and self.epoch - self.best_epoch > patience)
        )

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of the training, unless it has failed. A NonFiniteError is kept as `failure`."""
        if self.failure is None:
            try:
                work()
            except NonFiniteError as error:
                self.failure = error

    def begin_epoch(self) -> None:
        """Make ready for the first batch."""
        # Draws depend on seed and epoch alone, so that the state has no random state in it.
        self._draws.seed(_epoch_seed(self.config.seed, self.epoch))
        self.model.train()
        self._losses: list[Tensor] = []
        self._clips: list[tuple[Clip, ...]] = []

    def step(self, batch: Batch) -> None:
        """Train on a batch, whose maps are on the device.

        Raises NonFiniteError, with the clips, for a loss of this epoch so far that is infinite or NaN. Losses
        are looked at now and then.
        """
        config, optimizer, epoch_steps = self.config, self._optimizer, len(self.train)
        share = learning_rate_share(self.num_batches_done, config, epoch_steps=epoch_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * share
        targets = self.task.targets(batch).to(self.device)
        mixed = torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32)
        with self._draws.drawing(), mixed:
            outputs = self.task.run_model(self.model, batch)
        changes = self._augment.changes if self._augment else Changes()
        targets = self.task.shown_targets(targets, changes.frames)
        loss = self.task.loss(outputs, targets)
        if changes.partners is not None and changes.partner_share is not None:
            loss = torch.lerp(loss, self.task.loss(outputs, targets[changes.partners]), changes.partner_share)
        optimizer.zero_grad()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if config.grad_clip:
            self._scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self._scaler.step(optimizer)
        self._scaler.update()
        self._rows.append(self.task.keep_rows(outputs.detach(), targets))
        self._losses.append(loss.detach())
        self._clips.append(batch.clips)
        if len(self._losses) == _BATCHES_PER_CHECK or len(self._rows) == epoch_steps:
            _check_finite(self._losses, self._clips, epoch=self.epoch, config=config)
            self._losses, self._clips = [], []

    def begin_answers(self) -> None:
        """Make ready for the first batch of the val split."""
        self._answering = Answering(self.model, task=self.task, device=self.device)

    def answer(self, batch: Batch) -> None:
        """Answer about a batch of the val split."""
        self._answering.add(batch)

    def end_epoch(self) -> None:
        """Measure the epoch, and write the state. Raises NonFiniteError for answers that are not finite."""
        metrics = {"train": self.task.metrics(*map(torch.cat, zip(*self._rows, strict=True)))}
        predictions = self._answering.predictions()
        measure = self.task.tuned(predictions).measure(predictions)
        metrics["val"] = measure(np.ones(len(predictions.clips)))
        self.history.append(metrics)
        self._rows = []
        if self.best_epoch == self.epoch - 1:
            weights = self.model.state_dict()
            self._best_weights = {name: value.detach().clone() for name, value in weights.items()}
            self._best_predictions = predictions
        _save_state(
            self.state_path,
            {
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "history": self.history,
                "best_weights": self._best_weights,
                "device": self.device.type,
            },
        )

    def result(self) -> Fit:
        """The training so far. The model gets the weights of the best epoch, and is not trained on."""
        self.model.load_state_dict(self._best_weights or self.model.state_dict())
        return Fit(self.history, self.best_epoch)

    def best_predictions(self) -> Predictions | None:
        """The answers of the best epoch about the val split, after `result`; None if the training failed."""
        if self.failure is None and self._best_predictions is None:
            return answer_batches(self.model, self.val.epoch(), task=self.task, device=self.device)
        return None if self.failure else self._best_predictions

    def _resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.history, self._best_weights = state["history"], state["best_weights"]
        log.info("Training resumes after epoch %d.", self.epoch)
        if state["device"] != self.device.type:
            log.info(
                "Those epochs were trained on %s, and the others will be on %s: the numbers will differ from"
                " those of a run on either.",
                state["device"],
                self.device.type,
            )


def best_epoch(history: list[Metrics], *, task: Task, monitor: str) -> int:
    """The best epoch by `monitor`, then by the loss; the first of equal ones; 0 if there are none."""

    def rank(epoch: int) -> tuple[float, float]:
        metrics = history[epoch]["val"]
        value = task.facts.monitors[monitor] * task.monitored(metrics, monitor)
        return -math.inf if math.isnan(value) else value, -metrics["loss"]

    return max(range(len(history)), key=rank, default=0)


def _check_finite(
    losses: list[Tensor], clips: list[tuple[Clip, ...]], *, epoch: int, config: TrainConfig
) -> None:
    """Raise NonFiniteError with the clips of the first batch whose loss is infinite or NaN."""
    faulty = (~torch.stack(losses).isfinite()).nonzero().flatten().tolist()
    if faulty:
        names = ", ".join(clip.clip_id for clip in clips[faulty[0]])
        raise NonFiniteError(
            f"The loss is {losses[faulty[0]].item()} in epoch {epoch}, in the batch of {names}. Their"
            " features are finite, so the weights have diverged: lower learning_rate"
            f" ({config.learning_rate}) or set grad_clip."
        )


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _load_state(path: Path, model: nn.Module, *, device: torch.device) -> dict[str, Any] | None:
    """The state that `_save_state` wrote; None, with a warning, if it is damaged or of another model."""
    if not path.exists():
        return None
    try:
        data = io.BytesIO(path.read_bytes())
        state: dict[str, Any] = torch.load(data, map_location=device, weights_only=True)
        found = {name: value.shape for name, value in state["model"].items()}
    except (ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        log.warning("%s is damaged (%s): training starts anew.", path, error)
        return None
    if found != {name: value.shape for name, value in model.state_dict().items()}:
        log.warning("%s is of a model of another shape: training starts anew.", path)
        return None
    return state


def _save_state(path: Path, state: dict[str, object]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())
