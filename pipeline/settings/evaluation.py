"""Settings of evaluation: how trained models are measured."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from pipeline.settings.tasks import TASKS
from pipeline.settings.training import TrainConfig
from pipeline.settings.unused import live_values, only_of

Split = Literal["train", "val", "test"]


class EvaluateConfig(BaseModel):
    """How trained models are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Split = "test"  # of the manifest, whose clips are measured
    num_resamples: PositiveInt = 1000  # draws of the clips for the confidence intervals
    seed: NonNegativeInt = 0  # of the draws, and of the order of shuffled frames
    beam_size: PositiveInt | None = None  # of captions; null: as trained (words.beam_size)
    length_power: Annotated[float, Field(ge=0)] | None = None  # null: as trained (words.length_power)
    batch_size: PositiveInt = 32  # samples at once

    def live(self, train: TrainConfig) -> dict[str, Any]:
        """The settings that can change the evaluation of models that `train` made, ready for JSON."""
        return live_values(self, self.unused(train))

    def unused(self, train: TrainConfig) -> dict[str, str]:
        """The settings that cannot change the evaluation of models that `train` made, and why."""
        if reason := only_of("task", train.task, TASKS, "says_words"):
            return dict.fromkeys(("beam_size", "length_power"), reason)
        if (self.beam_size or train.words.beam_size) == 1:
            return {"length_power": "it needs a beam_size above 1"}
        return {}
