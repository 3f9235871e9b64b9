"""Tasks: questions about clips, and how their answers are trained and measured."""

from pipeline.learn.tasks.captions import Captioning
from pipeline.learn.tasks.classification import Classification
from pipeline.learn.tasks.ctc import Ctc
from pipeline.learn.tasks.frame_labels import FrameLabels
from pipeline.learn.tasks.multilabel import FrameMultilabel, Multilabel
from pipeline.learn.tasks.questions import QuestionAnswering
from pipeline.learn.tasks.regression import Regression
from pipeline.learn.tasks.task import Predictions, Rows, Task
from pipeline.learn.tasks.words import FrameWords

_KINDS: tuple[type[Task], ...] = (
    Classification,
    FrameLabels,
    Multilabel,
    FrameMultilabel,
    Regression,
    Captioning,
    FrameWords,
    Ctc,
    QuestionAnswering,
)
TASK_CLASSES = {kind.name: kind for kind in _KINDS}

__all__ = [
    "TASK_CLASSES",
    "Captioning",
    "Classification",
    "Ctc",
    "FrameLabels",
    "FrameMultilabel",
    "FrameWords",
    "Multilabel",
    "Predictions",
    "QuestionAnswering",
    "Regression",
    "Rows",
    "Task",
]
