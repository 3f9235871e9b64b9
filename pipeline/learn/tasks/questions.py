"""Question answering: each clip has questions, and the model chooses among the answers of the train split."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ManifestError
from pipeline.learn.metrics import UNLABELLED, Measure
from pipeline.learn.models import ClipModel
from pipeline.learn.models.questions import QuestionModel
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import (
    ExtraInput,
    Predictions,
    Rows,
    Task,
    answer_table,
    masked_cross_entropy,
    refuse_without_target,
)
from pipeline.learn.vocabulary import END, PAD, Vocabulary, pad_groups
from pipeline.manifest import Clip
from pipeline.settings.model import ModelConfig
from pipeline.settings.tasks import TaskConfig

log = logging.getLogger(__name__)

_UNKNOWN_ANSWER = 0  # the number of an answer that the train split does not have: the model never gives it
_NUM_EXAMPLE_WORDS = 8  # of a question in `example_inputs`


@dataclass(frozen=True)
class Answers:
    """A model's answers to the questions about a clip."""

    questions: tuple[str, ...]
    logits: Tensor  # (Q, K)


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Answers to the questions in the manifest's column `questions`. The baseline does not see the clip."""

    vocabulary: Vocabulary  # of questions
    known_answers: tuple[str, ...]  # an answer's number is its place, counted from 1

    name: ClassVar[str] = "question_answering"
    extra_inputs: ClassVar[dict[str, ExtraInput]] = {
        "questions": ExtraInput(axes=("num_questions", "num_words"), shape="(B, Q, S) int64")
    }
    baseline_label: ClassVar[str] = "question only"

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """Take words and answers from the train split's clips, without rare ones.

        Raises ManifestError for a clip without questions, or when there are fewer than two answers.
        """
        cls._refuse_missing(clips)
        items = [item for clip in clips for item in clip.questions]
        counts = Counter(item.answer for item in items)
        answers = sorted(answer for answer, count in counts.items() if count >= config.words.min_count)
        if len(answers) < 2:
            raise ManifestError(
                f"Of the answers in the train split, these occur at least {config.words.min_count} times"
                f" (words.min_count): {', '.join(map(repr, answers)) or 'none'}. The task {cls.name!r} needs"
                " at least two."
            )
        questions = (item.question for item in items)
        return cls(Vocabulary.from_texts(questions, min_count=config.words.min_count), tuple(answers))

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `describe`."""
        return cls(Vocabulary(tuple(description["vocabulary"])), tuple(description["answers"]))

    def describe(self) -> dict[str, Any]:
        """Words and answers."""
        return {"vocabulary": self.vocabulary.words, "answers": self.known_answers}

    @property
    def num_outputs(self) -> int:
        """The number of answers, and one for an unknown answer."""
        return 1 + len(self.known_answers)

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ManifestError for a clip without questions; warn of unknown answers and words."""
        self._refuse_missing(clips)
        items = [item for clip in clips for item in clip.questions]
        words = self.vocabulary.unknown_words(item.question for item in items).total()
        answers = sum(item.answer not in self.known_answers for item in items)
        if words or answers:
            log.warning(
                "%d questions about %s clips: %d have an answer that the train split does not have, which no"
                " model can give; %d of their words are unknown.",
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
        """The size of the vector that is multiplied with the question's."""
        return config.question.joint_size

    def complete(self, clip: ClipModel, config: ModelConfig) -> nn.Module:
        """A model that reads questions, too, and if it is the baseline nothing else."""
        return QuestionModel(
            None if clip.is_baseline else clip,
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

    def example_inputs(self, num_clips: int) -> dict[str, Tensor]:
        """Three questions a clip (B, 3, S) int64, with three to five of the vocabulary's words each."""
        words = torch.arange(num_clips * 3 * _NUM_EXAMPLE_WORDS) % len(self.vocabulary)
        questions = words.view(num_clips, 3, _NUM_EXAMPLE_WORDS)
        for number in range(3):
            questions[:, number, number + 3] = END
            questions[:, number, number + 4 :] = PAD
        return {"questions": questions}

    def targets(self, batch: Batch) -> Tensor:
        """Numbers of answers (B, Q); UNLABELLED where a clip has fewer questions than another."""
        numbers = {answer: number for number, answer in enumerate(self.known_answers, start=1)}
        targets = torch.full((len(batch.clips), max(len(clip.questions) for clip in batch.clips)), UNLABELLED)
        for row, clip in zip(targets, batch.clips, strict=True):
            for place, item in enumerate(clip.questions):
                row[place] = numbers.get(item.answer, _UNKNOWN_ANSWER)
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (..., K) and answers (...): the mean over questions with a known answer."""
        return masked_cross_entropy(outputs, targets.masked_fill(targets == _UNKNOWN_ANSWER, UNLABELLED))

    def keep_rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (M, K) and answers (M,) of all questions."""
        return outputs[targets != UNLABELLED], targets[targets != UNLABELLED]

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Loss, and the share of right answers."""
        hits = _chosen(outputs) == targets
        return {"loss": float(self.loss(outputs, targets)), "accuracy": float(hits.float().mean())}

    def answers(self, model: nn.Module, batch: Batch) -> list[Answers]:
        """The answers about each clip. Raises ManifestError for a clip without questions."""
        self._refuse_missing(batch.clips)
        return [
            Answers(tuple(item.question for item in clip.questions), logits[: len(clip.questions)])
            for clip, logits in zip(batch.clips, self.run_model(model, batch).cpu(), strict=True)
        ]

    def finite_part(self, output: Answers) -> Tensor:
        """The logits (Q, K)."""
        return output.logits

    def measure(self, predictions: Predictions) -> Measure:
        """Loss and accuracy over the questions of all clips."""
        pairs = [
            (answers.logits, targets[: len(answers.logits)])
            for answers, targets in zip(predictions.outputs, predictions.targets, strict=True)
        ]
        num_questions = np.array([len(numbers) for _, numbers in pairs])  # (N,)
        num_hits = np.array([int((_chosen(logits) == numbers).sum()) for logits, numbers in pairs])
        num_known = np.array([int((numbers != _UNKNOWN_ANSWER).sum()) for _, numbers in pairs])
        losses = np.array([float(self.loss(*pair)) for pair in pairs])

        def count_answers(counts: np.ndarray) -> dict[str, float]:
            return {
                "accuracy": float((counts * num_hits).sum() / (counts * num_questions).sum()),
                "loss": float((counts * num_known * losses).sum() / max(1, (counts * num_known).sum())),
            }

        return count_answers

    def tabulate(self, predictions: Predictions) -> pa.Table:
        """A row a `question`. Where the train split does not have the right answer, there is no loss."""
        pairs = [(clip, item) for clip in predictions.clips for item in clip.questions]  # M
        logits = torch.cat([answers.logits for answers in predictions.outputs])  # (M, 1 + K)
        numbers = torch.cat([targets[targets != UNLABELLED] for targets in predictions.targets])  # (M,)
        is_known = numbers != _UNKNOWN_ANSWER
        losses = functional.cross_entropy(logits.double(), numbers, reduction="none")
        return answer_table(
            [clip for clip, _ in pairs],
            places={"question": pa.array([item.question for _, item in pairs])},
            truth=pa.array([item.answer for _, item in pairs]),
            answer=pa.array(self.known_answers).take(pa.array((_chosen(logits) - 1).numpy())),
            probabilities=self.interpret(logits),
            classes=self.known_answers,
            losses=losses.masked_fill(~is_known, torch.nan),
            loss_weights=is_known,
        )

    def interpret(self, outputs: Tensor) -> Tensor:
        """Logits (..., K) as the probabilities of `known_answers`."""
        return outputs[..., 1:].softmax(dim=-1)

    def render(self, output: Answers, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
        """The likeliest answers to each question."""
        probabilities = self.interpret(output.logits).topk(min(num_answers, len(self.known_answers)), dim=1)
        return [
            {"question": question, "answer": self.known_answers[number], "probability": value}
            for question, values, numbers in zip(
                output.questions, *map(Tensor.tolist, probabilities), strict=True
            )
            for value, number in zip(values, numbers, strict=True)
        ]

    @classmethod
    def _refuse_missing(cls, clips: Sequence[Clip]) -> None:
        missing = (clip for clip in clips if not clip.questions)
        refuse_without_target(missing, task=cls.name, target="question")


def _chosen(logits: Tensor) -> Tensor:
    """The numbers (M,) of the likeliest answers."""
    return logits[:, 1:].argmax(dim=1) + 1
