"""Regression: one or more numbers a clip."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.learn.metrics import Measure, measure_loss, measure_together, measure_values
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import Predictions, Rows, Task, answer_table, raise_if_any
from pipeline.manifest import Clip
from pipeline.settings.tasks import TaskConfig


@dataclass(frozen=True)
class Regression(Task):
    """The numbers in the manifest's column `value`. Outputs are standardised by the train split."""

    mean: tuple[float, ...]  # of each value, over the train split
    std: tuple[float, ...]  # 1 for a value that is always the same

    name: ClassVar[str] = "regression"

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:  # noqa: ARG003
        """Take the mean and standard deviation of each value over the train split's clips.

        Raises ManifestError for a clip without values, or with another number of them, or with infinite ones.
        """
        _refuse_missing(clips, num_values=max(map(len, (clip.values for clip in clips))) or 1)
        values = np.array([clip.values for clip in clips])  # (N, V)
        mean, std = values.mean(axis=0), values.std(axis=0)
        differs = std > 1e-9 * np.abs(mean)  # rounding of equal values leaves less
        return cls(tuple(mean.tolist()), tuple(np.where(differs, std, 1.0).tolist()))

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `describe`."""
        return cls(tuple(description["mean"]), tuple(description["std"]))

    def describe(self) -> dict[str, Any]:
        """Means and deviations."""
        return asdict(self)

    @property
    def num_outputs(self) -> int:
        """The number of values, V."""
        return len(self.mean)

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ManifestError for a clip that has not V finite values."""
        _refuse_missing(clips, num_values=self.num_outputs)

    def targets(self, batch: Batch) -> Tensor:
        """Standardised values (B, V) float32."""
        values = torch.tensor([clip.values for clip in batch.clips], dtype=torch.float64)
        return ((values - values.new_tensor(self.mean)) / values.new_tensor(self.std)).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of standardised values (B, V)."""
        return functional.mse_loss(outputs, targets)

    def monitored(self, metrics: Mapping[str, Any], monitor: str) -> Any:
        """The metric, but for errors of several values: their mean in units of each value's deviation.

        In the values' own units, the one with the largest deviation would decide alone.
        """
        if monitor not in ("mae", "rmse") or self.num_outputs == 1:
            return metrics[monitor]
        errors = [metrics[f"{monitor}_{number}"] / std for number, std in enumerate(self.std, start=1)]
        return sum(errors) / len(errors)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The loss of standardised values (N, V), and errors in the manifest's unit."""
        return self._measure(outputs.cpu(), targets.cpu())(np.ones(len(targets)))

    def measure(self, predictions: Predictions) -> Measure:
        """Loss of standardised values, and errors in the manifest's unit."""
        outputs, targets, _ = predictions.rows(per_frame=False)
        return self._measure(outputs, targets)

    def _measure(self, outputs: Tensor, targets: Tensor) -> Measure:
        losses = (outputs - targets).double().square().mean(dim=1).numpy()
        return measure_together(
            measure_loss(losses, np.ones(len(losses))),
            measure_values(self.interpret(outputs.double()), self.interpret(targets.double())),
        )

    def tabulate(self, predictions: Predictions) -> pa.Table:
        """A row a value in the manifest's unit; `value` is its number in its clip, counted from 1."""
        outputs, targets, _ = predictions.rows(per_frame=False)  # (N, V)
        clips, num_values = predictions.clips, self.num_outputs
        losses = (outputs - targets).double().square().flatten()
        return answer_table(
            [clip for clip in clips for _ in range(num_values)],
            places={"value": pa.array(np.tile(np.arange(1, num_values + 1), len(clips)))},
            truth=pa.array([value for clip in clips for value in clip.values]),
            answer=pa.array(self.interpret(outputs.double()).flatten().numpy()),
            losses=losses,
            loss_weights=torch.ones(len(losses)),
        )

    def interpret(self, outputs: Tensor) -> Tensor:
        """Outputs (..., V) in the manifest's unit."""
        return outputs * outputs.new_tensor(self.std) + outputs.new_tensor(self.mean)

    def render(self, output: Tensor, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
        """The values (V,) in the manifest's unit: `value`, or `value 1`, `value 2`, ..."""
        values = self.interpret(output.double()).tolist()
        names = ["value"] if len(values) == 1 else [f"value {number + 1}" for number in range(len(values))]
        return [dict(zip(names, values, strict=True))]


def _refuse_missing(clips: Sequence[Clip], *, num_values: int) -> None:
    raise_if_any(
        f"Clip {clip.clip_id!r} has no value: the task 'regression' needs one for every clip. Fill the"
        " manifest's column 'value', or choose another task."
        if not clip.values
        else f"Clip {clip.clip_id!r} has {len(clip.values)} values, and others have {num_values}: every clip"
        " needs the same number. Correct the manifest's column 'value'."
        if len(clip.values) != num_values
        else f"Clip {clip.clip_id!r} has value {'|'.join(map(str, clip.values))}: each must be finite."
        " Correct the manifest's column 'value'."
        for clip in clips
        if len(clip.values) != num_values or not all(map(math.isfinite, clip.values))
    )
