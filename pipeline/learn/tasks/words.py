"""Words: captions that a decoder says, or that are read off the frames, one word each."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ManifestError
from pipeline.learn.decoding import Sentence, WordsConfig, beam_search
from pipeline.learn.metrics import UNLABELLED, Measure
from pipeline.learn.metrics.text import measure_texts
from pipeline.learn.models import MeanPoolModel, ModelConfig, RecurrentModel
from pipeline.learn.models.attention import Memory
from pipeline.learn.models.captioning import CaptionModel
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import Predictions, Task, TaskConfig, masked_cross_entropy, raise_if_any
from pipeline.learn.vocabulary import PAD, SPECIAL_WORDS, START, UNKNOWN, Vocabulary, join_words, pad_groups
from pipeline.manifest import Clip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Words(Task):
    """A caption, from the manifest's column `caption`.

    Metrics are of what the model says by itself; only loss and perplexity are, by their definition, of a
    model that reads the references.
    """

    vocabulary: Vocabulary
    config: WordsConfig

    name: ClassVar[str]

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """The vocabulary is that of all captions of the train split's clips."""
        cls._refuse_missing(clips)
        texts = [text for clip in clips for text in clip.captions]
        task = cls(Vocabulary.from_texts(texts, min_count=config.words.min_count), config.words)
        if task.num_outputs == len(SPECIAL_WORDS):
            raise ManifestError(
                f"No word of the train split's captions occurs {config.words.min_count} times: the task"
                f" {cls.name!r} has nothing to say. Lower train.words.min_count."
            )
        task._report_unknown(clips)
        return task

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        vocabulary = Vocabulary(tuple(description["vocabulary"]))
        return cls(vocabulary, WordsConfig.model_validate(description["config"]))

    def describe(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.words, "config": self.config.model_dump(mode="json")}

    @property
    def num_outputs(self) -> int:
        return len(self.vocabulary)

    def check(self, clips: Sequence[Clip]) -> None:
        self._refuse_missing(clips)
        self._report_unknown(clips)

    @classmethod
    def _refuse_missing(cls, clips: Sequence[Clip]) -> None:
        raise_if_any(
            f"Clip {clip.clip_id!r} has no caption: the task {cls.name!r} needs one for every clip. Fill the"
            " manifest's column 'caption', or choose another train.task."
            for clip in clips
            if not clip.captions
        )

    def _report_unknown(self, clips: Sequence[Clip]) -> None:
        unknown = self.vocabulary.unknown_words(text for clip in clips for text in clip.captions)
        if unknown:
            shown = ", ".join(word for word, _ in unknown.most_common(10)) + ", ..." * (len(unknown) > 10)
            log.warning(
                "The captions of %d %s clips have %d words that are not among the vocabulary's %d: %s.",
                len(clips),
                clips[0].split,
                unknown.total(),
                len(self.vocabulary),
                shown,
            )

    def _measure(
        self, clips: Sequence[Clip], *, texts: Sequence[str], likelihoods: Sequence[Tensor]
    ) -> Measure:
        """Of what the model says of N clips, and how likely it finds each word of their references (M,)."""
        measure_said = measure_texts(texts, [clip.captions for clip in clips])
        sums = np.array([float(values.double().sum()) for values in likelihoods])  # (N,)
        num_words = np.array([len(values) for values in likelihoods])

        def measure(counts: np.ndarray) -> dict[str, float]:
            loss = -float((counts * sums).sum() / (counts * num_words).sum())
            return {**measure_said(counts), "loss": loss, "perplexity": _perplexity(loss)}

        return measure

    def finish(self, outputs: Tensor) -> Tensor:
        """Logits (..., V) as probabilities."""
        return outputs.softmax(dim=-1)


@dataclass(frozen=True)
class Caption:
    """What a model says of a clip."""

    text: str
    sentence: Sentence
    words: tuple[str, ...]
    attention: Tensor | None  # (S, T, P): of each word, to each frame's P steps of the scan; None without
    scores: Tensor  # (M, 3): of all words of the references, see `Captioning.outputs`


class Captioning(_Words):
    """A decoder says a caption word by word."""

    name = "captioning"
    per_frame = False
    says_words = True
    baseline = "mean-pool + decoder"
    monitors: ClassVar[dict[str, int]] = {
        "exact_match": 1,
        "token_accuracy": 1,
        "bleu_4": 1,
        "rouge_l": 1,
        "cider": 1,
        "loss": -1,
    }

    def with_search(self, **options: Any) -> Self:
        return replace(self, config=self.config.model_copy(update=options))

    def num_clip_outputs(self, config: ModelConfig) -> int:
        """A vector for the decoder."""
        return config.decoder.hidden_size

    def complete(self, clip: RecurrentModel | MeanPoolModel, name: str, config: ModelConfig) -> nn.Module:  # noqa: ARG002
        return CaptionModel(clip, config.decoder, num_words=len(self.vocabulary))

    def targets(self, batch: Batch) -> Tensor:
        """Word numbers (B, R, S) of each clip's captions, each with its END; PAD elsewhere."""
        sentences = [[self.vocabulary.encode(text) for text in clip.captions] for clip in batch.clips]
        return pad_groups(sentences)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model, reading the references, thinks of each of their words: scores (B, R, S, 3).

        The word's log-likelihood; 1 where it was the model's first choice, else 0; the weighted penalty of
        its sentence's attention.
        """
        assert isinstance(model, CaptionModel)
        sentences = self.targets(batch).to(batch.maps.device)
        return _read(model, model.remember(batch.maps, batch.lengths), sentences)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over words, of scores (..., 3) and words (...), and the attention's penalty."""
        scores = outputs[targets != PAD]  # (M, 3)
        return (scores[:, 2] - scores[:, 0]).mean()

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs[targets != PAD], targets[targets != PAD]

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Of a model that reads the references, not of what it says by itself, from scores (M, 3)."""
        loss = -float(outputs[:, 0].mean())
        accuracy = float(outputs[:, 1].mean())
        return {"loss": loss, "perplexity": _perplexity(loss), "teacher_forced_accuracy": accuracy}

    def answers(self, model: nn.Module, batch: Batch) -> list[Caption]:
        """The captions that the model says by itself."""
        assert isinstance(model, CaptionModel)
        memory = model.remember(batch.maps, batch.lengths)
        sentences = beam_search(
            model.decoder,
            memory,
            beam_size=self.config.beam_size,
            max_words=self.config.max_words,
            length_power=self.config.length_power,
        )
        scores = [torch.empty(0, 3)] * len(batch.clips)
        if all(clip.captions for clip in batch.clips):
            targets = self.targets(batch)
            outputs = _read(model, memory, targets.to(batch.maps.device)).cpu()  # (B, R, S, 3)
            scores = [said[words != PAD] for said, words in zip(outputs, targets, strict=True)]
        num_frames = batch.maps.shape[1]
        has_steps = isinstance(model.clip, RecurrentModel) and model.config.inject == "attention"
        captions = []
        for sentence, score, length in zip(sentences, scores, batch.lengths.tolist(), strict=True):
            words = tuple(self.vocabulary.words[number] for number in sentence.words)
            looks = sentence.attention  # (S, L)
            shape = (len(words), num_frames, looks.shape[1] // num_frames)
            attention = looks.reshape(shape)[:, :length] if has_steps else None
            captions.append(Caption(join_words(words), sentence, words, attention, score))
        return captions

    def numbers(self, output: Caption) -> Tensor:
        """The log-probabilities of what it says, and of its references' words."""
        return torch.cat([output.scores[:, 0], torch.tensor([output.sentence.log_probability])])

    def measure(self, predictions: Predictions) -> Measure:
        captions: tuple[Caption, ...] = predictions.outputs
        return self._measure(
            predictions.clips,
            texts=[caption.text for caption in captions],
            likelihoods=[caption.scores[:, 0] for caption in captions],
        )

    def render(
        self,
        output: Caption,
        frame_seconds: Tensor,  # noqa: ARG002
        *,
        num_answers: int = 1,  # noqa: ARG002
    ) -> list[dict[str, str | float]]:
        """The caption, and the probability of its words one after the other."""
        return [{"caption": output.text, "log_probability": output.sentence.log_probability}]


class FrameWords(_Words):
    """A caption without a decoder: frame by frame, its words and then an END, read off the frames.

    Needs an encoder that sees all frames at every step (`bidirectional`), and more frames than words. With
    several captions a clip, the first is trained.
    """

    name = "frame_words"
    per_frame = True
    about_frames = False
    monitors: ClassVar[dict[str, int]] = Captioning.monitors

    def targets(self, batch: Batch) -> Tensor:
        """Word numbers (B, T), END after the last word, UNLABELLED after that."""
        targets = torch.full(batch.frame_seconds.shape, UNLABELLED)
        for row, clip, num_frames in zip(targets, batch.clips, batch.lengths.tolist(), strict=True):
            words = self.vocabulary.encode(clip.captions[0])
            if len(words) > num_frames:
                raise ManifestError(
                    f"Clip {clip.clip_id!r} has {num_frames} frames, and its caption with an end {len(words)}"
                    " words: the task 'frame_words' needs a frame a word. Keep more frames"
                    " (extract.sampling), or set train.task to captioning."
                )
            row[: len(words)] = torch.tensor(words)
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (..., V) and words (...), mean over words."""
        return masked_cross_entropy(outputs, targets)

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The log-likelihood of each word and whether it came first (M, 2): logits would fill the memory."""
        asked = targets != UNLABELLED
        return _scores(outputs[asked], targets[asked]), targets[asked]

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Of what `rows` keeps."""
        loss = -float(outputs[:, 0].mean())
        return {"loss": loss, "perplexity": _perplexity(loss), "frame_accuracy": float(outputs[:, 1].mean())}

    def measure(self, predictions: Predictions) -> Measure:
        pairs = zip(predictions.outputs, predictions.targets, strict=True)
        return self._measure(
            predictions.clips,
            texts=[self._text(logits) for logits in predictions.outputs],
            likelihoods=[self.rows(logits, words)[0][:, 0] for logits, words in pairs],
        )

    def render(
        self,
        output: Tensor,
        frame_seconds: Tensor,  # noqa: ARG002
        *,
        num_answers: int = 1,  # noqa: ARG002
    ) -> list[dict[str, str | float]]:
        """The caption that the frames spell."""
        return [{"caption": self._text(output)}]

    def _text(self, logits: Tensor) -> str:
        """The likeliest word of each frame (T, V), up to the first END."""
        allowed = logits.clone()
        allowed[:, [PAD, START, UNKNOWN]] = -torch.inf
        return self.vocabulary.decode(allowed.argmax(dim=1).tolist())


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf  # a float ends at exp(709.8)


def _read(model: CaptionModel, memory: Memory, sentences: Tensor) -> Tensor:
    """Scores (B, R, S, 3) of the words of sentences (B, R, S); see `Captioning.outputs`."""
    reading = model.read(memory, sentences)
    penalty = reading.penalty[..., None, None].expand(*sentences.shape, 1)
    return torch.cat([_scores(reading.logits, sentences), penalty], dim=-1)


def _scores(logits: Tensor, words: Tensor) -> Tensor:
    """What logits (..., V) say of words (...): log-likelihood, and 1 where it comes first (..., 2)."""
    likelihoods = logits.float().log_softmax(dim=-1).gather(-1, words[..., None])  # (..., 1)
    return torch.cat([likelihoods, (logits.argmax(dim=-1) == words)[..., None].float()], dim=-1)
