"""Task: what is asked of a clip. The one place that knows targets, loss, metrics and the shape of outputs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError, ManifestError, QuestionsError
from pipeline.learn.decoding import WordsConfig
from pipeline.learn.metrics import UNLABELLED, Measure
from pipeline.learn.models import MeanPoolModel, ModelConfig, RecurrentModel, build_model
from pipeline.learn.streaming import Batch, Standardisation
from pipeline.manifest import Clip


class TaskConfig(BaseModel):
    """What is asked of a clip."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal[
        "classification", "frame_labels", "regression", "captioning", "frame_words", "question_answering"
    ] = "classification"
    class_weights: Literal["balanced"] | None = None  # of the loss; balanced: each class counts the same
    words: WordsConfig = WordsConfig()  # of captions and questions


@dataclass(frozen=True)
class Predictions:
    """What a model answers for clips, on the CPU, in the order in which they were first seen.

    A clip's answer is the mean over its windows; with an answer a frame, over the windows with the frame.
    """

    clips: tuple[Clip, ...]
    outputs: tuple[Any, ...]  # of each clip: (K,), or with an answer a frame (T, K)
    targets: tuple[Tensor, ...]  # likewise: a number or (V,), or (T,)
    frame_seconds: tuple[Tensor, ...]  # (T,) of each clip: time of its frames in the source

    def by_clip(self) -> Iterator["Predictions"]:
        """Each clip's by itself."""
        for i in range(len(self.clips)):
            one = slice(i, i + 1)
            yield Predictions(self.clips[one], self.outputs[one], self.targets[one], self.frame_seconds[one])

    def rows(self, *, per_frame: bool) -> tuple[Tensor, Tensor, np.ndarray]:
        """Outputs (M, K) and targets (M, ...) of all clips or frames, and the clip's number of each (M,)."""
        numbers = np.arange(len(self.clips))
        if not per_frame:
            return torch.stack(self.outputs), torch.stack(self.targets), numbers
        return (
            torch.cat(self.outputs),
            torch.cat(self.targets),
            np.repeat(numbers, [len(t) for t in self.targets]),
        )


class Task(Protocol):
    """A task, fitted on the train split. Methods with a body here are right for most tasks."""

    name: ClassVar[str]  # in TASKS
    per_frame: ClassVar[bool]  # outputs are (B, T, K) instead of (B, K)
    about_frames: ClassVar[bool] = True  # an answer a frame is about that frame, and goes where it goes
    says_words: ClassVar[bool] = False  # a decoder says the answer, a `Caption`; the model is a CaptionModel
    takes_questions: ClassVar[bool] = False  # the model reads a clip's questions beside its maps
    baseline: ClassVar[str] = "mean-pool + linear"  # what the model is compared with
    # Metrics that may choose the best epoch, and whether more is better (1) or less (-1). The first does
    # unless train.monitor says otherwise.
    monitors: ClassVar[dict[str, int]]

    @property
    def num_outputs(self) -> int:
        """K."""
        ...

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """Fitted on the clips of the train split. Raises ManifestError when they lack what the task needs."""
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
        if bool(questions) != self.takes_questions:
            needs = "needs" if self.takes_questions else "takes no"
            raise QuestionsError(f"The model's task is {self.name}, which {needs} questions.")

    def with_search(self, **options: Any) -> Self:
        """The task, searching its answers with other values of these fields of `WordsConfig`.

        Raises ConfigError where the task searches nothing.
        """
        names = " and ".join(options)
        raise ConfigError(f"{names} is for captions that a decoder says, and the task is {self.name}.")

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ManifestError for clips that have no target, or one that the train split does not know."""
        ...

    def targets(self, batch: Batch) -> Tensor:
        """On the CPU: (B,) or (B, V); with an answer a frame (B, T), UNLABELLED where nothing is asked."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scalar, of a batch's outputs and targets or of many batches' rows."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """`loss` and what else is cheap to know of an epoch of training, of what `rows` keeps."""
        ...

    def measure(self, predictions: Predictions) -> Measure:
        """All metrics, those of `monitors` among them, as a function of how often each clip counts."""
        ...

    def finish(self, outputs: Tensor) -> Tensor:
        """Outputs (..., K) as what they say: probabilities, or values in the manifest's unit. Exportable."""
        ...

    def render(
        self, output: Any, frame_seconds: Tensor, *, num_answers: int = 1
    ) -> list[dict[str, str | float]]:
        """A clip's output, see `Predictions`, as rows of a table for people: the likeliest answer first.

        `num_answers`: how many of the likeliest, where a task ranks them.
        """
        ...

    def build_model(
        self,
        name: str,
        config: ModelConfig,
        *,
        map_shape: tuple[int, int, int],
        standardisation: Standardisation | None = None,
        tail: nn.Module | None = None,
        seed: int = 0,
    ) -> nn.Module:
        """The model `name`, for maps (C, H, W), and initial weights from `seed`; see `models.build_model`."""
        clip = build_model(
            name,
            config,
            map_shape=map_shape,
            num_outputs=self.num_clip_outputs(config),
            per_frame=self.per_frame,
            standardisation=standardisation,
            tail=tail,
            seed=seed,
        )
        return self.complete(clip, name, config)

    def num_clip_outputs(self, config: ModelConfig) -> int:  # noqa: ARG002
        """Outputs of the clip's model: K, unless the task builds on it."""
        return self.num_outputs

    def complete(self, clip: RecurrentModel | MeanPoolModel, name: str, config: ModelConfig) -> nn.Module:  # noqa: ARG002
        """The whole model `name` around the clip's: that one, unless the task builds on it."""
        return clip

    def inputs(self, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002
        """What the model's forward takes besides maps and lengths, on the CPU."""
        return {}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's outputs for training, on the device of the batch's maps."""
        inputs = {name: values.to(batch.maps.device) for name, values in self.inputs(batch).items()}
        outputs: Tensor = model(batch.maps, batch.lengths, **inputs)
        return outputs.float()  # of autocast: the loss is always in float32

    def answers(self, model: nn.Module, batch: Batch) -> Any:
        """One answer a sample, for evaluation; the outputs, unless a task decodes them."""
        return self.outputs(model, batch)

    def numbers(self, output: Any) -> Tensor:
        """Of a clip's output, see `Predictions`, what must be finite."""
        values: Tensor = output
        return values

    def monitored(self, metrics: Mapping[str, Any], monitor: str) -> Any:
        """What epochs and models are compared by: the metric `monitor`, a number or an array."""
        return metrics[monitor]

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What of a training batch is kept for `metrics` until the epoch ends."""
        return (outputs.flatten(0, 1), targets.flatten(0, 1)) if self.per_frame else (outputs, targets)


def masked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (..., K) and classes (...), the mean over all but UNLABELLED; 0 of none."""
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    total = functional.cross_entropy(logits, targets, ignore_index=UNLABELLED, reduction="sum")
    return total / (targets != UNLABELLED).sum().clamp(min=1)


def raise_if_any(problems: Iterable[str]) -> None:
    """Raise ManifestError with the first three problems and the number of the others, if there are any."""
    found = list(problems)
    if found:
        more = [f"And {len(found) - 3} more."] if len(found) > 3 else []
        raise ManifestError("\n".join([*found[:3], *more]))
