"""Tasks: what is asked of a clip."""

from pipeline.learn.tasks.classification import Classification, FrameLabels
from pipeline.learn.tasks.questions import QuestionAnswering
from pipeline.learn.tasks.regression import Regression
from pipeline.learn.tasks.task import Predictions, Task, TaskConfig
from pipeline.learn.tasks.words import Captioning, FrameWords

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
