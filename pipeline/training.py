"""Training: one loop from initial weights to the best epoch's, resumable after every epoch."""

import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pipeline.devices import DeviceName
from pipeline.errors import PipelineError
from pipeline.evaluation import predict
from pipeline.files import write_atomically
from pipeline.models import ModelConfig
from pipeline.models.clip import PositiveInt
from pipeline.streaming import Loader
from pipeline.tasks import Classification

log = logging.getLogger(__name__)

# Share of the learning rate, by the share of all steps done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}


class TrainConfig(ModelConfig):
    """From a tap's features to a checkpoint."""

    tap: str = "layer4"  # which features: features/<tap>
    task: Literal["classification"] = "classification"
    standardise: bool = True  # each channel by its mean and deviation in the train split
    epochs: PositiveInt = 30  # at most
    patience: PositiveInt | None = 10  # stop after so many epochs without a better val score; null: never
    batch_size: PositiveInt = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3  # AdamW's
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    schedule: Literal["constant", "cosine"] = "cosine"  # of the learning rate, to zero at `epochs`
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0  # largest norm of all gradients; null: any
    seed: Annotated[int, Field(ge=0)] = 0  # of initial weights, order of clips and dropout
    device: DeviceName = "auto"
    num_threads: PositiveInt = 2  # that read features
    resident_mb: Annotated[int, Field(ge=0)] = 2048  # features up to this size are kept in memory


Metrics = dict[str, dict[str, float]]  # of one epoch: {"train": {"loss": ...}, "val": {"loss": ...}}


@dataclass(frozen=True)
class Fit:
    """What a training run came to."""

    history: list[Metrics]  # one entry an epoch
    best_epoch: int  # counted from 0; its weights are the model's


def fit(
    model: nn.Module,
    *,
    task: Classification,
    train: Loader,
    val: Loader,
    config: TrainConfig,
    device: torch.device,
    state_path: Path,
    on_batch: Callable[[int], None] = lambda _: None,
    on_epoch: Callable[[Metrics], None] = lambda _: None,
) -> Fit:
    """Train in place, until `config.epochs` or until patience ends; the model gets the best epoch's weights.

    After each epoch everything goes to `state_path`; where that exists, training continues after its last
    epoch, to the same numbers as if it had never stopped. `on_batch` is told each batch's number of clips,
    `on_epoch` each epoch's metrics, those before a resume included.

    Raises PipelineError when the loss is no longer finite.
    """
    model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    history: list[Metrics] = []
    best_weights: dict[str, torch.Tensor] = {}
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history, best_weights = state["history"], state["best_weights"]
        log.info("Training resumes after epoch %d.", len(history))
        for metrics in history:
            on_epoch(metrics)

    num_steps = config.epochs * len(train)
    for epoch in range(len(history), config.epochs):
        if config.patience and epoch - _best_epoch(history, task) > config.patience:
            break
        # Dropout depends on seed and epoch alone: a resumed run needs no stored random state.
        torch.manual_seed(_epoch_seed(config.seed, epoch))
        model.train()
        all_outputs, all_targets = [], []
        for index, batch in enumerate(train.epoch(epoch)):
            done = (epoch * len(train) + index) / num_steps
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * SCHEDULES[config.schedule](done)
            targets = task.targets(batch.clips).to(device)
            outputs = model(batch.maps.to(device), batch.lengths)
            optimizer.zero_grad()
            task.loss(outputs, targets).backward()  # type: ignore[no-untyped-call]
            if config.grad_clip:
                nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            all_outputs.append(outputs.detach())
            all_targets.append(targets)
            on_batch(len(batch.clips))
        metrics = {"train": task.metrics(torch.cat(all_outputs), torch.cat(all_targets))}
        if not math.isfinite(metrics["train"]["loss"]):
            raise PipelineError(
                f"The loss is {metrics['train']['loss']} in epoch {epoch}: training diverged. "
                f"Lower train.learning_rate ({config.learning_rate}) or set train.grad_clip."
            )
        predictions = predict(model, val.epoch(), task=task, device=device)
        metrics["val"] = task.metrics(predictions.outputs, predictions.targets)
        history.append(metrics)
        if _best_epoch(history, task) == epoch:
            best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        _save_state(
            state_path,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history,
                "best_weights": best_weights,
            },
        )
        on_epoch(metrics)
    model.load_state_dict(best_weights)
    return Fit(history, _best_epoch(history, task))


def _best_epoch(history: list[Metrics], task: Classification) -> int:
    """The first of the best; 0 before any."""
    return max(range(len(history)), key=lambda epoch: task.score(history[epoch]["val"]), default=0)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _save_state(path: Path, state: dict[str, object]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())
