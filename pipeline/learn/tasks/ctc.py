"""CTC: the words that frames say one after another, trained without their times."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.errors import TooFewFramesError
from pipeline.learn.ctc import ctc_losses, frames_needed, likeliest_words
from pipeline.learn.metrics import UNLABELLED, Measure, measure_loss, measure_together
from pipeline.learn.metrics.text import measure_word_errors
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import Predictions, Rows
from pipeline.learn.tasks.words import Said, WordsTask, losses_of
from pipeline.learn.vocabulary import END, PAD, START, UNKNOWN, join_words
from pipeline.manifest import Clip


class Ctc(WordsTask):
    """A caption whose words happen in its order, each at some frames: glosses of a sign language, digits.

    PAD is the number of a frame that says nothing. Of several captions of a clip, the first is trained.
    """

    name: ClassVar[str] = "ctc"
    about_frames: ClassVar[bool] = False

    def targets(self, batch: Batch) -> Tensor:
        """Word numbers (B, T) in order, then PAD up to the clip's last frame, then UNLABELLED.

        Raises TooFewFramesError for a clip whose frames can't say its words.
        """
        targets = torch.full(batch.frame_seconds.shape, UNLABELLED)
        for row, clip, num_frames in zip(targets, batch.clips, batch.lengths.tolist(), strict=True):
            words = self._words(clip)
            if (needed := frames_needed(words)) > num_frames:
                raise TooFewFramesError(
                    f"Clip {clip.clip_id!r} has {num_frames} frames, and its caption needs {needed}: the task"
                    " 'ctc' takes a frame a word, and one between two equal words."
                )
            row[:num_frames] = PAD
            row[: len(words)] = torch.tensor(words)
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of words (B, T) by logits (B, T, V), divided by the number of words."""
        losses, num_words = self.keep_rows(outputs, targets)
        return losses.sum() / num_words.sum()

    def keep_rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and numbers of words (B,)."""
        words = targets.clamp(min=PAD)
        losses = ctc_losses(outputs, words, (targets != UNLABELLED).sum(dim=1))
        return losses, (words != PAD).sum(dim=1).cpu()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The loss, from losses and numbers of words (M,)."""
        return {"loss": float(outputs.double().sum() / targets.sum())}

    def read(self, predictions: Predictions) -> list[Said]:
        """What the frames of each clip say; of its captions, the first counts."""
        readings = []
        for logits, words in zip(predictions.outputs, predictions.targets, strict=True):
            losses, num_words = self.keep_rows(logits[None], words[None])
            readings.append(Said(self._text(self._said(logits)), float(losses), int(num_words)))
        return readings

    def measure(self, predictions: Predictions) -> Measure:
        """Errors of the words that are said, and the loss of the first captions."""
        readings = self.read(predictions)
        return measure_together(
            measure_word_errors(
                [said.text for said in readings], [clip.captions for clip in predictions.clips]
            ),
            measure_loss(*losses_of(readings)),
        )

    def render(self, output: Tensor, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
        """The caption, and the log-probability that the frames say it, in whatever way."""
        words = self._said(output)
        losses = ctc_losses(
            output[None], torch.tensor([words], dtype=torch.int64), torch.tensor([len(output)])
        )
        return [{"caption": self._text(words), "log_probability": -float(losses)}]

    def _words(self, clip: Clip) -> list[int]:
        """The numbers of the words of the clip's first caption."""
        return self.vocabulary.encode(clip.captions[0])[:-1]  # without the END

    def _said(self, logits: Tensor) -> list[int]:
        """The numbers of the words that frames (T, V) say."""
        allowed = logits.double().log_softmax(dim=-1)
        allowed[:, [START, END, UNKNOWN]] = -torch.inf
        return likeliest_words(allowed.numpy(), beam_size=self.config.beam_size)

    def _text(self, words: Sequence[int]) -> str:
        return join_words(self.vocabulary.words[number] for number in words)
