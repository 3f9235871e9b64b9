"""Tasks: what is asked of a clip."""

from pipeline.tasks.classification import Classification, FrameLabels
from pipeline.tasks.questions import QuestionAnswering
from pipeline.tasks.regression import Regression
from pipeline.tasks.task import Predictions, Task, TaskConfig
from pipeline.tasks.words import Captioning, FrameWords

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "frame_labels": FrameLabels,
    "regression": Regression,
    "captioning": Captioning,
    "frame_words": FrameWords,
    "question_answering": QuestionAnswering,
}

__all__ = [
    "TASKS",
    "Captioning",
    "Classification",
    "FrameLabels",
    "FrameWords",
    "Predictions",
    "QuestionAnswering",
    "Regression",
    "Task",
    "TaskConfig",
]
