"""Training: one loop from initial weights to the best epoch's, resumable after every epoch."""

import io
import logging
import math
import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.errors import ConfigError, NonFiniteError
from pipeline.learn.evaluation import predict
from pipeline.learn.models import ModelConfig
from pipeline.learn.streaming import Loader, LoaderConfig
from pipeline.learn.tasks import Task, TaskConfig
from pipeline.manifest import Clip
from pipeline.system.devices import DeviceName
from pipeline.system.files import write_atomically

log = logging.getLogger(__name__)


# Share of the learning rate, by the share of all steps after the warm-up that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}

# Each makes an optimizer of groups of parameters.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}

# What matrices are multiplied in; weights, losses and sums stay float32.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Batches between two looks at the losses: each look waits for the GPU.
_BATCHES_PER_LOOK = 50


class TrainConfig(ModelConfig, TaskConfig, LoaderConfig):
    """From a tap's features to a checkpoint."""

    tap: str = "layer4"  # which features: features/<tap>
    tail: str | None = None  # a later tap, e.g. layer4: the layers up to there are trained too; null: none
    tail_learning_rate: PositiveFloat = 1e-5  # of these layers
    standardise: bool = True  # each channel by its mean and deviation in the train split
    epochs: PositiveInt = 30  # at most
    monitor: str | None = None  # metric of the val split that chooses the best epoch; null: the task's
    patience: PositiveInt | None = 10  # stop after so many epochs without a better one; null: never
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    schedule: Literal["constant", "cosine"] = "cosine"  # of the learning rate; cosine: to zero at `epochs`
    warmup_epochs: NonNegativeInt = 0  # in which the learning rate rises from zero
    grad_clip: PositiveFloat | None = 1.0  # largest norm of all gradients; null: any
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of matrix products; float16: on a GPU
    seed: NonNegativeInt = 0  # of initial weights, order of clips and dropout
    device: DeviceName = "auto"

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}")
        return self

    @model_validator(mode="after")
    def _words_are_of_whole_clips(self) -> Self:
        if self.window and self.task in ("captioning", "frame_words", "question_answering"):
            raise ValueError(
                f"window {self.window} cuts clips, but {self.task} is of whole ones; set it to null"
            )
        return self

    @model_validator(mode="after")
    def _options_are_used(self) -> Self:
        per_frame = self.task in ("frame_labels", "frame_words")
        if per_frame and self.summary != "last" and self.frame_net != "cell":
            raise ValueError(
                f"summary {self.summary!r} is of whole clips, and {self.task} answers at every frame; set it"
                " to last"
            )
        if self.class_weights and self.task not in ("classification", "frame_labels"):
            raise ValueError(f"class_weights are for classes, and {self.task} has none; set it to null")
        return self


Metrics = dict[str, dict[str, float]]  # of one epoch: {"train": {"loss": ...}, "val": {"loss": ...}}


@dataclass(frozen=True)
class Fit:
    """What a training run came to."""

    history: list[Metrics]  # one entry an epoch
    best_epoch: int  # counted from 0; its weights are the model's


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
    """Train in place, until `config.epochs` or until patience ends; the model gets the best epoch's weights.

    After each epoch everything goes to `state_path`; where that exists, training continues after its last
    epoch, to the same numbers as if it had never stopped. `on_batch` is called after each batch, `on_epoch`
    with each epoch's metrics, those before a resume included.

    Raises ConfigError for a monitor that the task does not measure; NonFiniteError, with the clips, for
    features, answers or a loss that are not finite.
    """
    monitor, sign = resolve_monitor(task, config)
    precision = resolve_precision(config, device)
    model.to(device)
    optimizer = make_optimizer(model, config)
    # Gradients below 6e-8 are 0 in float16, and only there.
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    history: list[Metrics] = []
    best_weights: dict[str, Tensor] = {}
    if state := _load_state(state_path, model, device=device):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        history, best_weights = state["history"], state["best_weights"]
        log.info("Training resumes after epoch %d.", len(history))
        for metrics in history:
            on_epoch(metrics)

    best = best_epoch(history, monitor=monitor, sign=sign, monitored=task.monitored)
    for epoch in range(len(history), config.epochs):
        if config.patience and epoch - best > config.patience:
            break
        # Dropout depends on seed and epoch alone: a resumed run needs no stored random state.
        torch.manual_seed(_epoch_seed(config.seed, epoch))
        model.train()
        rows, losses, clips = [], [], []
        for index, batch in enumerate(train.epoch(epoch)):
            share = learning_rate_share(epoch * len(train) + index, config, epoch_steps=len(train))
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * share
            targets = task.targets(batch).to(device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                outputs = task.outputs(model, replace(batch, maps=batch.maps.to(device)))
            loss = task.loss(outputs, targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if config.grad_clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            rows.append(task.rows(outputs.detach(), targets))
            losses.append(loss.detach())
            clips.append(batch.clips)
            if len(losses) == _BATCHES_PER_LOOK or index + 1 == len(train):
                _check_finite(losses, clips, epoch=epoch, config=config)
                losses, clips = [], []
            on_batch()
        metrics = {"train": task.metrics(*map(torch.cat, zip(*rows, strict=True)))}
        predictions = predict(model, val.epoch(), task=task, device=device)
        metrics["val"] = task.measure(predictions)(np.ones(len(predictions.clips)))
        history.append(metrics)
        best = best_epoch(history, monitor=monitor, sign=sign, monitored=task.monitored)
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
            },
        )
        on_epoch(metrics)
    model.load_state_dict(best_weights)
    return Fit(history, best)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Over all parameters; those of the tail in a group of their own with `tail_learning_rate`.

    Each group has its rate at the top of the schedule as `full_lr`.
    """
    tail = [value for name, value in model.named_parameters() if ".tail." in f".{name}"]
    others = [value for name, value in model.named_parameters() if ".tail." not in f".{name}"]
    groups = [
        {"params": params, "lr": rate, "full_lr": rate}
        for params, rate in ((others, config.learning_rate), (tail, config.tail_learning_rate))
        if params
    ]
    options = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    return OPTIMIZERS[config.optimizer](groups, weight_decay=config.weight_decay, **options)


def learning_rate_share(step: int, config: TrainConfig, *, epoch_steps: int) -> float:
    """The share of the full learning rate at a step, counted from 0: up a ramp, then along the schedule."""
    num_warmup, num_steps = config.warmup_epochs * epoch_steps, config.epochs * epoch_steps
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return SCHEDULES[config.schedule]((step - num_warmup) / (num_steps - num_warmup))


def resolve_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The type of matrix products. Raises ConfigError for one that the device does not have."""
    if config.precision == "float16" and device.type == "cpu":
        raise ConfigError("train.precision 'float16' needs a GPU. Use float32 or bfloat16 on a CPU.")
    return PRECISIONS[config.precision]


def resolve_monitor(task: Task, config: TrainConfig) -> tuple[str, int]:
    """The metric that chooses the best epoch, and 1 where more is better, else -1.

    Raises ConfigError for one that the task does not measure after an epoch.
    """
    monitor = config.monitor or next(iter(task.monitors))
    if monitor not in task.monitors:
        raise ConfigError(
            f"train.monitor {monitor!r} is not measured for the task {config.task!r}. Available:"
            f" {', '.join(task.monitors)}."
        )
    return monitor, task.monitors[monitor]


def best_epoch(
    history: list[Metrics],
    *,
    monitor: str,
    sign: int,
    monitored: Callable[[dict[str, float], str], float] = operator.getitem,
) -> int:
    """The first of the best, the loss deciding among equals; 0 before any. `monitored`: see `Task`."""

    def score(epoch: int) -> tuple[float, float]:
        metrics = history[epoch]["val"]
        value = sign * monitored(metrics, monitor)
        return -math.inf if math.isnan(value) else value, -metrics["loss"]

    return max(range(len(history)), key=score, default=0)


def _check_finite(
    losses: list[Tensor], clips: list[tuple[Clip, ...]], *, epoch: int, config: TrainConfig
) -> None:
    """Raise NonFiniteError with the clips of the first batch whose loss is infinite or NaN."""
    faulty = (~torch.stack(losses).isfinite()).nonzero().flatten().tolist()
    if faulty:
        names = ", ".join(clip.clip_id for clip in clips[faulty[0]])
        raise NonFiniteError(
            f"The loss is {losses[faulty[0]].item()} in epoch {epoch}, in the batch of {names}. Their"
            " features are finite, so the weights have diverged: lower train.learning_rate"
            f" ({config.learning_rate}) or set train.grad_clip."
        )


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _load_state(path: Path, model: nn.Module, *, device: torch.device) -> dict[str, Any] | None:
    """What `_save_state` wrote; None, with a warning, for what is unreadable or of another model."""
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
