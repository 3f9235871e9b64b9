"""Training: one loop, from initial weights to those of the best epoch, which resumes after any epoch."""

import io
import logging
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import NonFiniteError
from pipeline.learn.evaluation import answer_batches
from pipeline.learn.optimisation import learning_rate_share, make_optimizer, resolve_precision
from pipeline.learn.streaming import Loader
from pipeline.learn.tasks import Task
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


def fit(
    model: nn.Module,
    *,
    task: Task,
    train: Loader,
    val: Loader,
    config: TrainConfig,
    device: torch.device,
    state_path: Path,
    on_batch: Callable[[], None] = lambda: None,
    on_epoch: Callable[[Metrics], None] = lambda _: None,
) -> Fit:
    """Train in place, until `config.epochs` or the end of patience; the model keeps the best epoch's weights.

    After each epoch the state of the training goes to `state_path`. If that file exists, training continues
    after its last epoch, to the same numbers as without the interruption. `on_batch` is called after each
    batch, and `on_epoch` with each epoch's metrics, including those before a resume.

    Raises ConfigError for a precision that the device does not have; NonFiniteError, with the clips, for
    features, answers or a loss that are infinite or NaN.
    """
    monitor = config.resolved_monitor
    dtype = resolve_precision(config, device)
    model.to(device)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=PRECISIONS[config.precision].scales_loss)
    history: list[Metrics] = []
    best_weights: dict[str, Tensor] = {}
    if state := _load_state(state_path, model, device=device):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        history, best_weights = state["history"], state["best_weights"]
        log.info("Training resumes after epoch %d.", len(history))
        if state["device"] != device.type:
            log.info(
                "Those epochs were trained on %s, and the others will be on %s: the numbers will differ from"
                " those of a run on either.",
                state["device"],
                device.type,
            )
        for metrics in history:
            on_epoch(metrics)

    best = best_epoch(history, task=task, monitor=monitor)
    for epoch in range(len(history), config.epochs):
        if config.patience and epoch - best > config.patience:
            break
        # Dropout depends on seed and epoch alone, so that the state has no random state in it.
        torch.manual_seed(_epoch_seed(config.seed, epoch))
        model.train()
        rows, losses, clips = [], [], []
        for index, batch in enumerate(train.epoch(epoch)):
            share = learning_rate_share(epoch * len(train) + index, config, epoch_steps=len(train))
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * share
            targets = task.targets(batch).to(device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                outputs = task.run_model(model, replace(batch, maps=batch.maps.to(device)))
            loss = task.loss(outputs, targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if config.grad_clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            rows.append(task.keep_rows(outputs.detach(), targets))
            losses.append(loss.detach())
            clips.append(batch.clips)
            if len(losses) == _BATCHES_PER_CHECK or index + 1 == len(train):
                _check_finite(losses, clips, epoch=epoch, config=config)
                losses, clips = [], []
            on_batch()
        metrics = {"train": task.metrics(*map(torch.cat, zip(*rows, strict=True)))}
        predictions = answer_batches(model, val.epoch(), task=task, device=device)
        metrics["val"] = task.measure(predictions)(np.ones(len(predictions.clips)))
        history.append(metrics)
        best = best_epoch(history, task=task, monitor=monitor)
        if best == epoch:
            best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        _save_state(
            state_path,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "history": history,
                "best_weights": best_weights,
                "device": device.type,
            },
        )
        on_epoch(metrics)
    model.load_state_dict(best_weights)
    return Fit(history, best)


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
