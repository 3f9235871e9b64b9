"""Settings of tasks, and what each task means; pipeline/learn/tasks has their code, by the same names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from pipeline.settings.words import WordsConfig


@dataclass(frozen=True)
class TaskFacts:
    """What other code asks about a task."""

    column: str  # of the manifest: has the target of each clip
    headline: str  # the metric that tables of experiments show
    # The metrics that can choose the best epoch; 1: more is better, -1: less is. The first is the default.
    monitors: Mapping[str, int]
    per_frame: bool = False  # outputs are (B, T, K) instead of (B, K)
    of_whole_clips: bool = False  # targets make no sense for a window of a clip
    has_classes: bool = False  # labels, which class_weights and the like are about
    is_multilabel: bool = False  # any number of classes at once, or none
    has_segments: bool = False  # frames with the same label make a segment
    has_words: bool = False  # a vocabulary
    says_words: bool = False  # a decoder says each answer, a `Caption`; the model is a CaptionModel
    searches_words: bool = False  # among several answers, which a beam keeps
    takes_questions: bool = False  # the model reads a clip's questions beside its maps

    @property
    def has_mean_answers(self) -> bool:
        """Whether several answers about a clip have a mean: of probabilities or values, not of words."""
        return not self.has_words

    @property
    def has_mean_targets(self) -> bool:
        """Whether a mixture of two clips has a target: a mixture of theirs."""
        return self.has_mean_answers and not self.per_frame


_OF_CLASSES = {"accuracy": 1, "macro_f1": 1, "mAP": 1, "loss": -1}
_OF_SEGMENTS = {"edit": 1, "f1_10": 1, "f1_25": 1, "f1_50": 1}
_OF_LABELS = {"mAP": 1, "macro_f1": 1, "micro_f1": 1, "loss": -1}
_OF_VALUES = {"mae": -1, "rmse": -1, "r2": 1, "loss": -1}
_OF_TEXTS = {"exact_match": 1, "token_accuracy": 1, "bleu_4": 1, "rouge_l": 1, "cider": 1, "loss": -1}

TASKS: dict[str, TaskFacts] = {
    "classification": TaskFacts("label", "accuracy", _OF_CLASSES, has_classes=True),
    "frame_labels": TaskFacts(
        "frame_labels",
        "accuracy",
        _OF_CLASSES | _OF_SEGMENTS,
        per_frame=True,
        has_classes=True,
        has_segments=True,
    ),
    "multilabel": TaskFacts("label", "mAP", _OF_LABELS, has_classes=True, is_multilabel=True),
    "frame_multilabel": TaskFacts(
        "frame_labels",
        "mAP",
        {**_OF_LABELS, "mAP_25": 1},
        per_frame=True,
        has_classes=True,
        is_multilabel=True,
    ),
    "regression": TaskFacts("value", "rmse", _OF_VALUES),
    "captioning": TaskFacts(
        "caption",
        "exact_match",
        _OF_TEXTS,
        of_whole_clips=True,
        has_words=True,
        says_words=True,
        searches_words=True,
    ),
    "frame_words": TaskFacts(
        "caption", "exact_match", _OF_TEXTS, per_frame=True, of_whole_clips=True, has_words=True
    ),
    "ctc": TaskFacts(
        "caption",
        "word_error_rate",
        {"word_error_rate": -1, "exact_match": 1, "loss": -1},
        per_frame=True,
        of_whole_clips=True,
        has_words=True,
        searches_words=True,
    ),
    "question_answering": TaskFacts(
        "questions",
        "accuracy",
        {"accuracy": 1, "loss": -1},
        of_whole_clips=True,
        has_words=True,
        takes_questions=True,
    ),
}


class SegmentsConfig(BaseModel):
    """Runs of frames with the same label: how they are trained, cleaned and measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    background: tuple[str, ...] = ()  # labels whose segments count neither in edit nor in F1
    smoothing: Annotated[float, Field(ge=0)] = 0.0  # weight of a loss on changes between frames, as in MS-TCN
    smoothing_limit: Annotated[float, Field(gt=0)] = (
        4.0  # a larger change of a log-probability counts as this
    )
    min_seconds: Annotated[float, Field(ge=0)] = 0.0  # shorter segments of answers join the longer neighbour


class TaskConfig(BaseModel):
    """Settings of tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # In the loss, by the number of clips of each class. balanced: all classes count equally.
    # effective_number: of Cui et al. 2019, between balanced and null.
    class_weights: Literal["balanced", "effective_number"] | None = None
    effective_number_beta: Annotated[float, Field(ge=0, lt=1)] = 0.999  # 0: as null; towards 1: as balanced
    focal_gamma: NonNegativeFloat = 0.0  # of the focal loss (Lin et al. 2017): how little easy clips count
    segments: SegmentsConfig = SegmentsConfig()  # of frames with the same label
    words: WordsConfig = WordsConfig()  # of captions and questions
