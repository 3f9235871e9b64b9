"""Task: a question about clips. It alone knows the targets, loss, metrics and the shape of outputs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError, ManifestError, QuestionsError
from pipeline.learn.metrics import UNLABELLED, Measure
from pipeline.learn.models import MODEL_CLASSES, ClipModel, build_late_fusion, build_model
from pipeline.learn.streaming import Batch, MapShape, Standardisation
from pipeline.manifest import Clip
from pipeline.settings.model import ModelConfig
from pipeline.settings.tasks import TASKS, TaskConfig, TaskFacts

Rows = list[dict[str, str | float]]  # of a table for people, each by column


@dataclass(frozen=True)
class Predictions:
    """A model's answers about clips, on the CPU, in the order in which the clips were first seen.

    A clip's answer is the mean over its windows; a frame's answer, over the windows that have the frame.
    """

    clips: tuple[Clip, ...]
    outputs: tuple[Any, ...]  # of each clip: (K,), or with an answer a frame (T, K)
    targets: tuple[Tensor, ...]  # of each clip: a number, (V,) or (K,); with an answer a frame (T,) or (T, K)
    frame_seconds: tuple[Tensor, ...]  # (T,) of each clip: time of its frames in the source

    def by_clip(self) -> Iterator["Predictions"]:
        """The predictions of each clip by itself."""
        return (self.take([number]) for number in range(len(self.clips)))

    def take(self, numbers: Iterable[int]) -> "Predictions":
        """The predictions of these clips, by their places."""
        chosen = list(numbers)
        values = (getattr(self, field.name) for field in fields(self))
        return Predictions(*(tuple(column[number] for number in chosen) for column in values))

    def rows(self, *, per_frame: bool) -> tuple[Tensor, Tensor, np.ndarray]:
        """Outputs (M, K), targets (M, ...) and numbers of the clips (M,), of M clips or frames."""
        numbers = np.arange(len(self.clips))
        if not per_frame:
            return torch.stack(self.outputs), torch.stack(self.targets), numbers
        return (
            torch.cat(self.outputs),
            torch.cat(self.targets),
            np.repeat(numbers, [len(t) for t in self.targets]),
        )


class ExtraInput(NamedTuple):
    """An input of a task's models beside the maps."""

    axes: tuple[str, ...]  # their names, after the batch
    shape: str  # for people, with the dtype


class Task(Protocol):
    """A task, fitted on the train split. The methods with a body suit most tasks."""

    name: ClassVar[str]  # in the settings
    about_frames: ClassVar[bool] = True  # a frame's answer is about that frame, and moves where it is moved
    extra_inputs: ClassVar[Mapping[str, ExtraInput]] = {}  # by name, see `inputs`
    baseline_label: ClassVar[str] = "mean-pool + linear"  # in tables of results

    @property
    def facts(self) -> TaskFacts:
        """Those that the settings have of this task."""
        return TASKS[self.name]

    @property
    def num_outputs(self) -> int:
        """K."""
        ...

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """Fit the task on clips of the train split. Raises ManifestError when a clip lacks its target."""
        ...

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `describe`."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON for the checkpoint."""
        ...

    def check_questions(self, questions: Sequence[str]) -> None:
        """Raise QuestionsError for questions where the task takes none, and for none where it needs them."""
        if bool(questions) != self.facts.takes_questions:
            needs = "needs" if self.facts.takes_questions else "takes no"
            raise QuestionsError(f"The model's task is {self.name}, which {needs} questions.")

    def with_options(self, **options: Any) -> Self:  # noqa: ARG002
        """The same task, answering with other values of these settings of `EvaluateConfig`."""
        return self

    def tuned(self, predictions: Predictions | None) -> Self:  # noqa: ARG002
        """The task with what is chosen by a model's answers about the val split; None: not yet chosen."""
        return self

    def labels(self, clip: Clip) -> tuple[str, ...]:  # noqa: ARG002
        """The classes of a clip, which `balanced_sampling` makes equally frequent; () without classes."""
        return ()

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ManifestError for a clip without a target, or with one that the train split does not have."""
        ...

    def targets(self, batch: Batch) -> Tensor:
        """Targets (B, ...) on the CPU; for an answer a frame (B, T, ...), UNLABELLED where there is none."""
        ...

    def shown_targets(self, targets: Tensor, frames: Tensor | None) -> Tensor:
        """The targets of clips whose places show other `frames` (B, T) int64; None: each shows its own."""
        if frames is None or not (self.facts.per_frame and self.about_frames):
            return targets
        return targets[torch.arange(len(frames), device=frames.device)[:, None], frames]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar to minimise, from the outputs and targets of a batch, or from rows of `keep_rows`."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """`loss` and other cheap metrics of an epoch of training, from rows of `keep_rows`."""
        ...

    def measure(self, predictions: Predictions) -> Measure:
        """All metrics, including those of `monitors`, as a function of how often each clip counts."""
        ...

    def measure_monitor(self, predictions: Predictions, monitor: str) -> Measure:  # noqa: ARG002
        """Like `measure`, but it may leave out metrics other than `monitor`, where they take long."""
        return self.measure(predictions)

    def interpret(self, outputs: Tensor) -> Tensor:
        """Turn outputs (..., K) into probabilities, or values in the manifest's unit. Can be exported."""
        ...

    def render(self, output: Any, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:
        """A clip's output of `Predictions` as rows of a table for people.

        Where a task ranks answers, there are `num_answers` of them, the likeliest first.
        """
        ...

    def render_frames(self, output: Any, frame_seconds: Tensor) -> Rows:  # noqa: ARG002
        """A clip's output of `Predictions` as rows of each frame. Raises ConfigError for other answers."""
        raise ConfigError(f"The model's task is {self.name}: it has no answer for each frame.")

    def tabulate(self, predictions: Predictions) -> pa.Table:
        """The rows of these predictions in `evaluation.prediction_table`; `answer_table` makes them."""
        ...

    def build_model(
        self,
        name: str,
        config: ModelConfig,
        *,
        map_shapes: Sequence[MapShape],
        standardisations: Sequence[Standardisation] | None = None,
        tail: nn.Module | None = None,
        seed: int = 0,
    ) -> nn.Module:
        """The model `name` for this task; the arguments are those of `models.build_model`."""
        if config.streams and config.fusion == "late" and not MODEL_CLASSES[name].is_baseline:
            return build_late_fusion(
                config,
                map_shapes=map_shapes,
                num_outputs=self.num_outputs,
                per_frame=self.facts.per_frame,
                standardisations=standardisations,
                seed=seed,
            )
        clip = build_model(
            name,
            config,
            map_shapes=map_shapes,
            num_outputs=self.num_clip_outputs(config),
            per_frame=self.facts.per_frame,
            standardisations=standardisations,
            tail=tail,
            seed=seed,
        )
        return self.complete(clip, config)

    def num_clip_outputs(self, config: ModelConfig) -> int:  # noqa: ARG002
        """Outputs of the clip's model: K, unless the task builds on it."""
        return self.num_outputs

    def complete(self, clip: ClipModel, config: ModelConfig) -> nn.Module:  # noqa: ARG002
        """The whole model, which has `clip` in it; `clip` itself, unless the task builds on it."""
        return clip

    def inputs(self, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002
        """The values of `extra_inputs` for a batch, on the CPU."""
        return {}

    def example_inputs(self, num_clips: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Arbitrary values of `extra_inputs`, to trace and check an exported model with."""
        return {}

    def run_model(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's outputs for the loss, float32 on the device of the batch's maps."""
        inputs = {name: values.to(batch.maps.device) for name, values in self.inputs(batch).items()}
        outputs: Tensor = model(batch.maps, batch.lengths, **inputs)
        return outputs.float()  # autocast may have made them bfloat16

    def answers(self, model: nn.Module, batch: Batch) -> Any:
        """One answer a sample, for evaluation: the outputs, unless a task decodes them."""
        return self.run_model(model, batch)

    def mean_answer(self, outputs: Tensor) -> Tensor:
        """One output of `Predictions` from V of them (V, ...), about the same clip seen in V views.

        Values have their mean. Classes have the logits of their mean probabilities.
        """
        return outputs.mean(dim=0)

    def finite_part(self, output: Any) -> Tensor:
        """The numbers in a clip's output of `Predictions` that must be finite."""
        values: Tensor = output
        return values

    def monitored(self, metrics: Mapping[str, Any], monitor: str) -> Any:
        """The value, a number or an array, by which the metric `monitor` compares epochs and models."""
        return metrics[monitor]

    def keep_rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of a training batch that `metrics` reads at the end of the epoch."""
        return (outputs.flatten(0, 1), targets.flatten(0, 1)) if self.facts.per_frame else (outputs, targets)


def answer_table(
    clips: Iterable[Clip],
    *,
    truth: pa.Array,
    answer: pa.Array,
    losses: Tensor,
    loss_weights: Tensor,
    places: Mapping[str, pa.Array] | None = None,
    probabilities: Tensor | None = None,
    classes: Sequence[str] = (),
) -> pa.Table:
    """A model's rows in `prediction_table`, from columns of M answers.

    Args:
        clips: the clip of each answer; several answers may be about one clip.
        truth: (M,) the right answers.
        answer: (M,) the model's, of the type of `truth` or of its items.
        losses: (M,) NaN stands for an answer without a loss.
        loss_weights: (M,) the metric `loss` is the mean of `losses` with these weights.
        places: columns (M,) by name that tell the answers about one clip apart.
        probabilities: (M, K) of the classes among which the model chooses.
        classes: their K names.
    """
    columns = {
        "clip_id": pa.array([clip.clip_id for clip in clips], pa.string()),
        **(places or {}),
        "truth": truth,
        "answer": answer,
    }
    if probabilities is not None:
        ends = np.arange(len(probabilities) + 1, dtype=np.int32) * probabilities.shape[1]
        columns["probabilities"] = pa.ListArray.from_arrays(ends, probabilities.float().flatten().numpy())
    columns["loss"] = pa.array(losses.double().numpy(), from_pandas=True)
    columns["loss_weight"] = pa.array(loss_weights.double().numpy())
    return pa.table(columns, metadata={"classes": json.dumps(classes)} if classes else None)


def masked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (..., K) and classes (...): the mean over all but UNLABELLED, or 0."""
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    total = functional.cross_entropy(logits, targets, ignore_index=UNLABELLED, reduction="sum")
    return total / (targets != UNLABELLED).sum().clamp(min=1)


def refuse_without_target(clips: Iterable[Clip], *, task: str, target: str) -> None:
    """Raise ManifestError for these clips, if there are any: they have no target."""
    raise_if_any(
        f"Clip {clip.clip_id!r} has no {target}: the task {task!r} needs one for every clip. Fill the"
        f" manifest's column {TASKS[task].column!r}, or choose another task."
        for clip in clips
    )


def raise_if_any(problems: Iterable[str]) -> None:
    """Raise ManifestError with the first three problems and the number of others, if there are any."""
    found = list(problems)
    if found:
        more = [f"And {len(found) - 3} more."] if len(found) > 3 else []
        raise ManifestError("\n".join([*found[:3], *more]))
