"""Settings of evaluation: how trained models are measured."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from pipeline.contract import CENTER
from pipeline.settings.model import CELLS
from pipeline.settings.tasks import TASKS
from pipeline.settings.training import TrainConfig
from pipeline.settings.unused import live_values, only_of
from pipeline.settings.views import Views

Split = Literal["train", "val", "test"]


class EvaluateConfig(BaseModel):
    """How trained models are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Split = "test"  # of the manifest, whose clips are measured
    num_resamples: PositiveInt = 1000  # draws of the clips for the confidence intervals
    seed: NonNegativeInt = 0  # of the draws, and of the order of shuffled frames
    beam_size: PositiveInt | None = None  # of captions; null: as trained (words.beam_size)
    length_power: Annotated[float, Field(ge=0)] | None = None  # null: as trained (words.length_power)
    # Shorter segments of answers join the longer neighbour; null: as trained (segments.min_seconds).
    min_seconds: Annotated[float, Field(ge=0)] | None = None
    batch_size: PositiveInt = 32  # samples at once
    # Read each clip whole, so many frames at a time: a long one takes no more memory, and has the answer that
    # it has in one piece, also of a model that was trained on windows. null: as in training.
    chunk_frames: PositiveInt | None = None
    # Probabilities, or values, are the mean over these views; each is among extract.views.
    views: Views = (CENTER,)

    def live(self, train: TrainConfig) -> dict[str, Any]:
        """The settings that can change the evaluation of models that `train` made, ready for JSON."""
        return live_values(self, self.unused(train))

    def unused(self, train: TrainConfig) -> dict[str, str]:
        """The settings that cannot change the evaluation of models that `train` made, and why."""
        unused: dict[str, str] = {}
        if reason := only_of("task", train.task, TASKS, "searches_words"):
            unused["beam_size"] = reason
        if reason := only_of("task", train.task, TASKS, "says_words"):
            unused["length_power"] = reason
        elif (self.beam_size or train.words.beam_size) == 1:
            unused["length_power"] = "it needs a beam_size above 1"
        if reason := only_of("task", train.task, TASKS, "has_segments"):
            unused["min_seconds"] = reason
        if reason := only_of("task", train.task, TASKS, "has_mean_answers"):
            unused["views"] = reason
        if reason := needs_whole_clips(train):
            unused["chunk_frames"] = reason
        elif self.chunk_frames:
            unused["batch_size"] = "with chunk_frames, clips are read one by one"
        return unused


def needs_whole_clips(train: TrainConfig) -> str:
    """Why models that `train` made read a clip in one piece only; "" if they also read it in chunks."""
    if TASKS[train.task].of_whole_clips:
        return f"the task {train.task!r} reads clips in one piece"
    return only_of("cell", train.cell, CELLS, "reads_chunks")
