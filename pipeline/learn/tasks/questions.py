"""Questions: any number of them about each clip, with an answer out of those that were trained."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ManifestError
from pipeline.learn.metrics import UNLABELLED, Measure
from pipeline.learn.models import MeanPoolModel, ModelConfig, RecurrentModel
from pipeline.learn.models.questions import QuestionModel
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import Predictions, Task, TaskConfig, masked_cross_entropy, raise_if_any
from pipeline.learn.vocabulary import Vocabulary, pad_groups
from pipeline.manifest import Clip

log = logging.getLogger(__name__)

# The number of an answer that the train split does not have: never said, so always wrong.
_UNHEARD = 0


@dataclass(frozen=True)
class Answers:
    """A model's answers to the questions about a clip."""

    questions: tuple[str, ...]
    logits: Tensor  # (Q, K)


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Answers to the manifest's column `questions`. The baseline knows the questions, but not the clip."""

    vocabulary: Vocabulary  # of questions
    known_answers: tuple[str, ...]  # an answer's number is its place, counted from 1

    name: ClassVar[str] = "question_answering"
    per_frame: ClassVar[bool] = False
    takes_questions: ClassVar[bool] = True
    baseline: ClassVar[str] = "question only"
    monitors: ClassVar[dict[str, int]] = {"accuracy": 1, "loss": -1}

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """Words and answers are those of the train split's clips, without the rare ones."""
        cls._refuse_missing(clips)
        items = [item for clip in clips for item in clip.questions]
        counts = Counter(item.answer for item in items)
        answers = sorted(answer for answer, count in counts.items() if count >= config.words.min_count)
        if len(answers) < 2:
            raise ManifestError(
                f"The train split's questions have the answers {', '.join(map(repr, answers)) or 'none'}: the"
                f" task {cls.name!r} needs at least two that occur {config.words.min_count} times"
                " (train.words.min_count)."
            )
        questions = (item.question for item in items)
        return cls(Vocabulary.from_texts(questions, min_count=config.words.min_count), tuple(answers))

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(Vocabulary(tuple(description["vocabulary"])), tuple(description["answers"]))

    def describe(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.words, "answers": self.known_answers}

    @property
    def num_outputs(self) -> int:
        return 1 + len(self.known_answers)

    def check(self, clips: Sequence[Clip]) -> None:
        self._refuse_missing(clips)
        items = [item for clip in clips for item in clip.questions]
        words = self.vocabulary.unknown_words(item.question for item in items).total()
        answers = sum(item.answer not in self.known_answers for item in items)
        if words or answers:
            log.warning(
                "Of the %d questions about %s clips, %d have an answer that the train split does not have: no"
                " model gets these right. %d of their words are unknown.",
                len(items),
                clips[0].split,
                answers,
                words,
            )

    def check_questions(self, questions: Sequence[str]) -> None:
        """As `Task.check_questions`; warns of words that the train split does not have."""
        super().check_questions(questions)
        if unknown := self.vocabulary.unknown_words(questions):
            log.warning("The model has not learned: %s.", ", ".join(unknown))

    def num_clip_outputs(self, config: ModelConfig) -> int:
        """A vector to be joined with the question's."""
        return config.question.joint_size

    def complete(self, clip: RecurrentModel | MeanPoolModel, name: str, config: ModelConfig) -> nn.Module:
        return QuestionModel(
            None if name == "baseline" else clip,
            config.question,
            num_words=len(self.vocabulary),
            num_answers=self.num_outputs,
        )

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Word numbers (B, Q, S) of each clip's questions, each with its END; PAD elsewhere."""
        questions = [
            [self.vocabulary.encode(item.question) for item in clip.questions] for clip in batch.clips
        ]
        return {"questions": pad_groups(questions)}

    def targets(self, batch: Batch) -> Tensor:
        """Numbers of answers (B, Q); UNLABELLED where a clip has fewer questions than another."""
        numbers = {answer: number for number, answer in enumerate(self.known_answers, start=1)}
        targets = torch.full((len(batch.clips), max(len(clip.questions) for clip in batch.clips)), UNLABELLED)
        for row, clip in zip(targets, batch.clips, strict=True):
            for place, item in enumerate(clip.questions):
                row[place] = numbers.get(item.answer, _UNHEARD)
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (..., K) and answers (...), the mean over questions with a known answer."""
        return masked_cross_entropy(outputs, targets.masked_fill(targets == _UNHEARD, UNLABELLED))

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (M, K) and answers (M,) of all questions."""
        return outputs[targets != UNLABELLED], targets[targets != UNLABELLED]

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Loss, and the share of right answers."""
        hits = _chosen(outputs) == targets
        return {"loss": float(self.loss(outputs, targets)), "accuracy": float(hits.float().mean())}

    def answers(self, model: nn.Module, batch: Batch) -> list[Answers]:
        """Those of each clip. Raises ManifestError for a clip without questions."""
        self._refuse_missing(batch.clips)
        return [
            Answers(tuple(item.question for item in clip.questions), logits[: len(clip.questions)])
            for clip, logits in zip(batch.clips, self.outputs(model, batch).cpu(), strict=True)
        ]

    def numbers(self, output: Answers) -> Tensor:
        return output.logits

    def measure(self, predictions: Predictions) -> Measure:
        """Loss and accuracy over the questions of all clips."""
        pairs = [
            (answers.logits, targets[: len(answers.logits)])
            for answers, targets in zip(predictions.outputs, predictions.targets, strict=True)
        ]
        num_questions = np.array([len(numbers) for _, numbers in pairs])  # (N,)
        num_hits = np.array([int((_chosen(logits) == numbers).sum()) for logits, numbers in pairs])
        num_heard = np.array([int((numbers != _UNHEARD).sum()) for _, numbers in pairs])
        losses = np.array([float(self.loss(*pair)) for pair in pairs])

        def measure(counts: np.ndarray) -> dict[str, float]:
            return {
                "accuracy": float((counts * num_hits).sum() / (counts * num_questions).sum()),
                "loss": float((counts * num_heard * losses).sum() / max(1, (counts * num_heard).sum())),
            }

        return measure

    def finish(self, outputs: Tensor) -> Tensor:
        """Logits (..., K) as the probabilities of `known_answers`."""
        return outputs[..., 1:].softmax(dim=-1)

    def render(
        self,
        output: Answers,
        frame_seconds: Tensor,  # noqa: ARG002
        *,
        num_answers: int = 1,
    ) -> list[dict[str, str | float]]:
        """For each question the likeliest answers."""
        probabilities = self.finish(output.logits).topk(min(num_answers, len(self.known_answers)), dim=1)
        return [
            {"question": question, "answer": self.known_answers[number], "probability": value}
            for question, values, numbers in zip(
                output.questions, *map(Tensor.tolist, probabilities), strict=True
            )
            for value, number in zip(values, numbers, strict=True)
        ]

    @classmethod
    def _refuse_missing(cls, clips: Sequence[Clip]) -> None:
        raise_if_any(
            f"Clip {clip.clip_id!r} has no question: the task {cls.name!r} needs one for every clip. Fill the"
            " manifest's column 'questions' (or give --question to predict), or choose another train.task."
            for clip in clips
            if not clip.questions
        )


def _chosen(logits: Tensor) -> Tensor:
    """The numbers (M,) of the likeliest answers."""
    return logits[:, 1:].argmax(dim=1) + 1
