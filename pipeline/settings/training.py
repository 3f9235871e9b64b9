"""Settings of training: from a tap's features to a checkpoint, and which of them count under the others."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from pipeline.registry import one_of
from pipeline.settings.model import CELLS, FRAME_NETS, SCANS, ModelConfig
from pipeline.settings.optimisation import OPTIMIZERS, OptimisationConfig
from pipeline.settings.tasks import TASKS, TaskConfig
from pipeline.settings.unused import explain_unused, live_values, only_of
from pipeline.settings.words import DECODERS

ModelName = Literal["recurrent", "baseline"]
MODELS: tuple[ModelName, ...] = ("recurrent", "baseline")  # the model, and the baseline that it has to beat


class LoaderConfig(BaseModel):
    """How features become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: PositiveInt = 32  # samples: clips, or windows of clips
    window: PositiveInt | None = None  # frames of a sample: a longer clip is several; null: whole clips
    stride: PositiveInt | None = None  # frames from a window's start to the next one's; null: window
    crop_frames: PositiveInt | None = None  # train on a random run of so many frames a clip; null: on all
    bucketing: bool = False  # make batches of samples of similar length: less padding

    @model_validator(mode="after")
    def _no_frame_is_lost(self) -> Self:
        if self.stride and self.window and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is larger than window {self.window}: frames between windows would not"
                " be read; set stride to at most window"
            )
        return self


class TrainConfig(ModelConfig, TaskConfig, LoaderConfig, OptimisationConfig):
    """From a tap's features to a checkpoint.

    A setting that does nothing for the recurrent model is refused, unless it has its default.
    """

    task: Annotated[str, one_of(TASKS)] = "classification"  # what the model answers
    tap: str = "layer4"  # of the features to train on
    tail: str | None = None  # a later tap, e.g. layer4: layers up to it are trained, too; null: none
    standardise: bool = True  # each channel by its mean and deviation in the train split
    monitor: str | None = None  # metric of the val split that chooses the best epoch; null: the task's
    patience: PositiveInt | None = 10  # stop after so many epochs without a better one; null: never
    seed: NonNegativeInt = 0  # of initial weights, order of clips and dropout
    intra_op_threads: PositiveInt | None = None  # of torch on a CPU; they change sums; null: torch's number

    @property
    def resolved_monitor(self) -> str:
        """The metric of the val split that chooses the best epoch."""
        return self.monitor or next(iter(TASKS[self.task].monitors))

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> Self:
        monitors = TASKS[self.task].monitors
        if self.resolved_monitor not in monitors:
            raise ValueError(
                f"monitor {self.monitor!r} is not measured for the task {self.task!r}; available:"
                f" {', '.join(monitors)}"
            )
        return self

    @model_validator(mode="after")
    def _all_settings_count(self) -> Self:
        if problems := explain_unused(self, self.unused("recurrent")):
            raise ValueError(problems)
        return self

    def live(self, model: ModelName) -> dict[str, Any]:
        """The settings that can change what training makes of a model, ready for JSON.

        As a TrainConfig they train this model to the same weights.
        """
        return live_values(self, self.unused(model))

    def unused(self, model: ModelName) -> dict[str, str]:
        """The settings that cannot change what training makes of a model, each with the reason.

        Keys are dotted; a section of which nothing counts is one key. A setting whose null is the only
        possible value is among them.
        """
        task, scan, cell = TASKS[self.task], SCANS[self.scan], CELLS[self.cell]
        frame_net = FRAME_NETS[self.frame_net] if self.frame_net else None
        decoder = DECODERS[self.decoder.cell]
        is_baseline = model == "baseline"
        is_blind = is_baseline and task.takes_questions
        one_step = "a frame has one step"
        blind = "the baseline does not see the clip"
        # Whether settings do nothing, which ones, and why.
        rules = [
            (
                is_baseline,
                "frame_net projection cell hidden_size num_layers num_heads bidirectional summary",
                "the baseline is a mean of steps and a linear layer",
            ),
            (is_blind, "scan_every dropout standardise tail_learning_rate", blind),
            (is_blind and not self.bucketing, "crop_frames", blind),
            (not scan.is_strips, "scan_size", only_of("scan", SCANS, lambda s: s.is_strips)),
            (scan.is_whole_frame, "scan_every frame_net", f"{one_step} with scan {self.scan!r}"),
            (
                self.pooling != "flatten" and scan.axes != "",
                "scan_every",
                f"{one_step} after pooling {self.pooling!r}",
            ),
            (
                not cell.has_projection and not (frame_net and frame_net.needs_places),
                "projection",
                only_of("cell", CELLS, lambda c: c.has_projection),
            ),
            (
                not cell.has_layers,
                "hidden_size num_layers bidirectional",
                only_of("cell", CELLS, lambda c: c.has_layers),
            ),
            (not cell.has_heads, "num_heads", only_of("cell", CELLS, lambda c: c.has_heads)),
            (
                task.per_frame and not (frame_net and frame_net.uses_summary),
                "summary",
                f"the task {self.task!r} answers at every frame",
            ),
            (not task.has_classes, "class_weights", only_of("task", TASKS, lambda t: t.has_classes)),
            (task.of_whole_clips, "window", f"the task {self.task!r} is about whole clips"),
            (self.window is None, "stride", "it needs a window"),
            (self.tail is None, "tail_learning_rate", "it needs a tail"),
            (
                not OPTIMIZERS[self.optimizer].has_momentum,
                "momentum",
                only_of("optimizer", OPTIMIZERS, lambda o: o.has_momentum),
            ),
            (not task.takes_questions, "question", only_of("task", TASKS, lambda t: t.takes_questions)),
            (not task.has_words, "words", only_of("task", TASKS, lambda t: t.has_words)),
            (not task.says_words, "decoder", only_of("task", TASKS, lambda t: t.says_words)),
            (
                task.has_words and not task.says_words,
                "words.max_words words.beam_size words.length_power",
                only_of("task", TASKS, lambda t: t.says_words),
            ),
        ]
        if task.says_words:
            rules += [
                (
                    not decoder.has_embedding_size,
                    "decoder.embedding_size",
                    only_of("decoder.cell", DECODERS, lambda d: d.has_embedding_size),
                ),
                (
                    not decoder.has_heads,
                    "decoder.num_heads",
                    only_of("decoder.cell", DECODERS, lambda d: d.has_heads),
                ),
                (
                    self.decoder.inject != "attention",
                    "decoder.doubly_stochastic",
                    "it is of decoder.inject attention",
                ),
                (
                    is_baseline,
                    "decoder.doubly_stochastic",
                    "the baseline's decoder has one state to attend to",
                ),
                (
                    not self.decoder.scheduled_sampling,
                    "decoder.scheduled_sampling_steps",
                    "it needs decoder.scheduled_sampling",
                ),
            ]
        unused: dict[str, str] = {}
        for does_nothing, keys, reason in rules:
            if does_nothing:
                for key in keys.split():
                    unused.setdefault(key, reason)
        return unused
