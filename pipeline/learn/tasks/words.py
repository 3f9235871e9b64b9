"""Words: tasks whose answer is a caption. Here is the one that has a word at each frame."""

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import ManifestError, TooFewFramesError, few
from pipeline.learn.metrics import UNLABELLED, Measure, measure_loss, measure_together
from pipeline.learn.metrics.text import measure_texts
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import (
    Predictions,
    Rows,
    Task,
    answer_table,
    masked_cross_entropy,
    refuse_without_target,
)
from pipeline.learn.vocabulary import PAD, SPECIAL_WORDS, START, UNKNOWN, Vocabulary
from pipeline.manifest import Clip
from pipeline.settings.tasks import TaskConfig
from pipeline.settings.words import WordsConfig

log = logging.getLogger(__name__)


class Said(NamedTuple):
    """What a model says of a clip, and what it makes of the clip's captions."""

    text: str
    loss: float  # the negative log-likelihood of all words of the captions
    num_words: int  # of the captions, with their ENDs if the task has them

    @classmethod
    def of(cls, text: str, likelihoods: Tensor) -> Self:
        """A text, and the log-likelihoods (M,) of the words of the captions."""
        return cls(text, -float(likelihoods.double().sum()), len(likelihoods))


@dataclass(frozen=True)
class WordsTask(Task):
    """A caption, from the manifest's column `caption`.

    Metrics score free-running output; only loss and perplexity use teacher forcing.
    """

    vocabulary: Vocabulary
    config: WordsConfig

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """Take the vocabulary from all captions of the train split's clips.

        Raises ManifestError for a clip without a caption, or when no word is frequent enough.
        """
        cls._refuse_missing(clips)
        texts = [text for clip in clips for text in clip.captions]
        task = cls(Vocabulary.from_texts(texts, min_count=config.words.min_count), config.words)
        if task.num_outputs == len(SPECIAL_WORDS):
            raise ManifestError(
                f"No word of the train split's captions occurs {config.words.min_count} times, and the task"
                f" {cls.name!r} needs words. Lower words.min_count."
            )
        task._report_unknown(clips)
        return task

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `describe`."""
        vocabulary = Vocabulary(tuple(description["vocabulary"]))
        return cls(vocabulary, WordsConfig.model_validate(description["config"]))

    def describe(self) -> dict[str, Any]:
        """Words and settings."""
        return {"vocabulary": self.vocabulary.words, "config": self.config.model_dump(mode="json")}

    @property
    def num_outputs(self) -> int:
        """The number of words, V."""
        return len(self.vocabulary)

    def with_options(self, **options: Any) -> Self:
        """The task, searching captions with other values of these fields of WordsConfig."""
        return replace(self, config=self.config.model_copy(update=options))

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ManifestError for a clip without a caption; warn of unknown words."""
        self._refuse_missing(clips)
        self._report_unknown(clips)

    @classmethod
    def _refuse_missing(cls, clips: Sequence[Clip]) -> None:
        missing = (clip for clip in clips if not clip.captions)
        refuse_without_target(missing, task=cls.name, target="caption")

    def _report_unknown(self, clips: Sequence[Clip]) -> None:
        unknown = self.vocabulary.unknown_words(text for clip in clips for text in clip.captions)
        if unknown:
            log.warning(
                "The captions of %d %s clips have %d words that are not among the vocabulary's %d: %s.",
                len(clips),
                clips[0].split,
                unknown.total(),
                len(self.vocabulary),
                few(word for word, _ in unknown.most_common()),
            )

    @abstractmethod
    def read(self, predictions: Predictions) -> list[Said]:
        """What the model says of each clip."""

    def measure(self, predictions: Predictions) -> Measure:
        """Metrics of the captions, and the loss and perplexity of their references."""
        readings = self.read(predictions)
        measure_reading = measure_loss(*losses_of(readings))

        def count_perplexity(counts: np.ndarray) -> dict[str, float]:
            return {"perplexity": perplexity(measure_reading(counts)["loss"])}

        said = measure_texts([said.text for said in readings], [clip.captions for clip in predictions.clips])
        return measure_together(said, measure_reading, count_perplexity)

    def tabulate(self, predictions: Predictions) -> pa.Table:
        """A row a clip: all its captions, the model's, and the mean loss of a word of its captions."""
        readings = self.read(predictions)
        losses, num_words = map(torch.from_numpy, losses_of(readings))
        return answer_table(
            predictions.clips,
            truth=pa.array([clip.captions for clip in predictions.clips], pa.list_(pa.string())),
            answer=pa.array([said.text for said in readings]),
            losses=losses / num_words,
            loss_weights=num_words,
        )

    def interpret(self, outputs: Tensor) -> Tensor:
        """Logits (..., V) as probabilities."""
        return outputs.softmax(dim=-1)


class FrameWords(WordsTask):
    """A caption without a decoder: its words and an END are the answers at the first frames, one each.

    Needs an encoder that sees all frames at every step (`bidirectional`), and more frames than words. Of
    several captions of a clip, the first is trained.
    """

    name: ClassVar[str] = "frame_words"
    about_frames: ClassVar[bool] = False

    def targets(self, batch: Batch) -> Tensor:
        """Word numbers (B, T): END after the last word, then UNLABELLED.

        Raises TooFewFramesError for a clip with fewer frames than words.
        """
        targets = torch.full(batch.frame_seconds.shape, UNLABELLED)
        for row, clip, num_frames in zip(targets, batch.clips, batch.lengths.tolist(), strict=True):
            words = self.vocabulary.encode(clip.captions[0])
            if len(words) > num_frames:
                raise TooFewFramesError(
                    f"Clip {clip.clip_id!r} has {num_frames} frames, and its caption with an end {len(words)}"
                    " words: the task 'frame_words' needs a frame a word."
                )
            row[: len(words)] = torch.tensor(words)
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (..., V) and words (...): the mean over words."""
        return masked_cross_entropy(outputs, targets)

    def keep_rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (M, 2), see `word_scores`, and numbers (M,) of all words: logits would fill the memory."""
        asked = targets != UNLABELLED
        return word_scores(outputs[asked], targets[asked]), targets[asked]

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Metrics of scores (M, 2)."""
        loss = -float(outputs[:, 0].mean())
        return {"loss": loss, "perplexity": perplexity(loss), "frame_accuracy": float(outputs[:, 1].mean())}

    def read(self, predictions: Predictions) -> list[Said]:
        """The likeliest words of each clip; of its captions, the first counts."""
        pairs = zip(predictions.outputs, predictions.targets, strict=True)
        return [
            Said.of(self._text(logits), self.keep_rows(logits, words)[0][:, 0]) for logits, words in pairs
        ]

    def render(self, output: Tensor, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
        """The caption of the likeliest words."""
        return [{"caption": self._text(output)}]

    def _text(self, logits: Tensor) -> str:
        """The likeliest word of each frame (T, V), up to the first END."""
        allowed = logits.clone()
        allowed[:, [PAD, START, UNKNOWN]] = -torch.inf
        return self.vocabulary.decode(allowed.argmax(dim=1).tolist())


def perplexity(loss: float) -> float:
    """The exponential of a loss; infinite where no float can hold it."""
    return math.exp(loss) if loss < 700 else math.inf  # a float ends at exp(709.8)


def word_scores(logits: Tensor, words: Tensor) -> Tensor:
    """Scores (..., 2) of words (...) by logits (..., V): log-likelihood; 1 for the first choice, or 0."""
    likelihoods = logits.float().log_softmax(dim=-1).gather(-1, words[..., None])  # (..., 1)
    return torch.cat([likelihoods, (logits.argmax(dim=-1) == words)[..., None].float()], dim=-1)


def losses_of(readings: Sequence[Said]) -> tuple[np.ndarray, np.ndarray]:
    """The loss (N,) of each clip's captions, and the numbers (N,) of their words."""
    return np.array([said.loss for said in readings]), np.array([said.num_words for said in readings])
