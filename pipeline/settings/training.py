"""Settings of training: from a tap's features to a checkpoint, and which of them count under the others."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from pipeline.contract import CENTER
from pipeline.registry import one_of
from pipeline.settings.model import CELLS, FRAME_NETS, FrameNet, ModelConfig
from pipeline.settings.optimisation import OPTIMIZERS, OptimisationConfig
from pipeline.settings.scans import SCANS
from pipeline.settings.tasks import TASKS, TaskConfig
from pipeline.settings.unused import explain_unused, live_values, only_of
from pipeline.settings.views import Views
from pipeline.settings.words import DECODERS

ModelName = Literal["recurrent", "baseline"]
MODELS: tuple[ModelName, ...] = ("recurrent", "baseline")  # the model, and the baseline that it has to beat


class LoaderConfig(BaseModel):
    """How features become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: PositiveInt = 32  # samples: clips, or windows of clips
    window: PositiveInt | None = None  # frames of a sample: a longer clip is several; null: whole clips
    stride: PositiveInt | None = None  # frames from a window's start to the next one's; null: window
    # Train on these views, of which one is drawn for each clip and epoch; each is among extract.views.
    views: Views = (CENTER,)
    crop_frames: PositiveInt | None = None  # train on a random run of so many frames a clip; null: on all
    bucketing: bool = False  # make batches of samples of similar length: less padding
    balanced_sampling: bool = (
        False  # train on equally many samples of each class: some again, some not at all
    )

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
    intra_op_threads: PositiveInt | None = 1  # of torch on a CPU; they change sums; null: torch's number

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
    def _streams_fit(self) -> Self:
        task, names = TASKS[self.task], [stream.tap for stream in self.streams]
        names += [self.tap] if "tap" in self.model_fields_set else []  # else the features say it
        if len(set(names)) < len(names):
            raise ValueError(f"of streams and tap ({', '.join(names)}), one comes twice")
        if self.streams and self.tail:
            raise ValueError(f"tail {self.tail!r} is trained behind one tap: leave out streams")
        if self.streams and self.fusion == "late" and (task.has_words or task.takes_questions):
            raise ValueError(f"the task {self.task!r} has no outputs to average: set fusion to early")
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
        task, scan, decoder = TASKS[self.task], SCANS[self.scan], self.decoder
        frame_net = FRAME_NETS[self.frame_net] if self.frame_net else FrameNet()
        is_baseline = model == "baseline"
        blind = is_baseline and task.takes_questions and "the baseline does not see the clip"
        of_every_frame = task.per_frame and f"the task {self.task!r} answers at every frame"
        # Settings, and the reason why they do nothing, if there is one.
        rules: list[tuple[str, str | bool]] = [
            (
                "frame_net projection cell hidden_size num_layers num_heads bidirectional summary",
                is_baseline and "the baseline is a mean of steps and a linear layer",
            ),
            ("scan_every dropout standardise tail_learning_rate", blind),
            ("crop_frames", not self.bucketing and blind),
            ("views augment", blind),
            ("fusion", not self.streams and "it needs streams"),
            ("fusion", is_baseline and "the baseline is linear: early and late are the same"),
            ("augment.mixup", only_of("task", self.task, TASKS, "has_mean_targets")),
            ("scan_size", only_of("scan", self.scan, SCANS, "is_strips")),
            ("scan_every frame_net", scan.is_whole_frame and f"a frame has one step with scan {self.scan!r}"),
            (
                "scan_every",
                scan.axes != ""
                and self.pooling != "flatten"
                and f"a frame has one step after pooling {self.pooling!r}",
            ),
            (
                "projection",
                not frame_net.needs_places and only_of("cell", self.cell, CELLS, "has_projection"),
            ),
            ("hidden_size num_layers bidirectional", only_of("cell", self.cell, CELLS, "has_layers")),
            ("num_heads", only_of("cell", self.cell, CELLS, "has_heads")),
            ("summary", not frame_net.uses_summary and of_every_frame),
            (
                "class_weights effective_number_beta focal_gamma balanced_sampling",
                only_of("task", self.task, TASKS, "has_classes"),
            ),
            (
                "effective_number_beta",
                self.class_weights != "effective_number" and "it needs class_weights effective_number",
            ),
            ("segments", only_of("task", self.task, TASKS, "has_segments")),
            (
                "segments.smoothing_limit",
                not self.segments.smoothing and "it needs segments.smoothing",
            ),
            ("window", task.of_whole_clips and f"the task {self.task!r} is about whole clips"),
            ("stride", self.window is None and "it needs a window"),
            ("tail_learning_rate", self.tail is None and "it needs a tail"),
            ("momentum", only_of("optimizer", self.optimizer, OPTIMIZERS, "has_momentum")),
            ("question", only_of("task", self.task, TASKS, "takes_questions")),
            ("words", only_of("task", self.task, TASKS, "has_words")),
            (
                "decoder words.max_words words.length_power",
                only_of("task", self.task, TASKS, "says_words"),
            ),
            ("words.beam_size", only_of("task", self.task, TASKS, "searches_words")),
            (
                "decoder.embedding_size",
                only_of("decoder.cell", decoder.cell, DECODERS, "has_embedding_size"),
            ),
            ("decoder.num_heads", only_of("decoder.cell", decoder.cell, DECODERS, "has_heads")),
            (
                "decoder.doubly_stochastic",
                decoder.inject != "attention" and "it needs decoder.inject attention",
            ),
            (
                "decoder.doubly_stochastic",
                is_baseline and "the baseline's decoder has one state to attend to",
            ),
            (
                "decoder.scheduled_sampling_steps",
                not decoder.scheduled_sampling and "it needs decoder.scheduled_sampling",
            ),
        ]
        unused: dict[str, str] = {}
        for keys, reason in rules:
            for key in keys.split() if reason else ():
                if key.partition(".")[0] not in unused:
                    unused.setdefault(key, str(reason))
        return unused


class AnyTrainConfig(TrainConfig):
    """A TrainConfig that takes every value of a setting that does nothing."""

    @model_validator(mode="after")
    def _all_settings_count(self) -> Self:
        return self


class MemberConfig(NamedTuple):
    """One of many models that are trained together."""

    name: str  # for progress and results
    config: TrainConfig
    manifest: Path  # its train split is trained on, its val split chooses the epoch
    model: ModelName = "recurrent"
    checkpoint: Path | None = None  # the folder to write when it is trained to its end; None: no folder
