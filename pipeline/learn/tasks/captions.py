"""Captioning: a decoder says a caption of the clip."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from pipeline.learn.decoding import Sentence, beam_search
from pipeline.learn.models import ClipModel
from pipeline.learn.models.attention import Memory
from pipeline.learn.models.captioning import CaptionModel
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import Predictions, Rows
from pipeline.learn.tasks.words import Said, WordsTask, perplexity, word_scores
from pipeline.learn.vocabulary import PAD, join_words, pad_groups
from pipeline.settings.model import ModelConfig


@dataclass(frozen=True)
class Caption:
    """A model's caption of a clip."""

    text: str
    sentence: Sentence
    words: tuple[str, ...]
    attention: Tensor | None  # (S, T, P): of each word, to the P steps of each frame; None without attention
    scores: Tensor  # (M, 3): of all words of the references, see `Captioning.run_model`


class Captioning(WordsTask):
    """A decoder says a caption word by word."""

    name: ClassVar[str] = "captioning"
    baseline_label: ClassVar[str] = "mean-pool + decoder"

    def num_clip_outputs(self, config: ModelConfig) -> int:
        """The size of the vector that the decoder gets."""
        return config.decoder.hidden_size

    def complete(self, clip: ClipModel, config: ModelConfig) -> nn.Module:
        """The clip's model with a decoder."""
        return CaptionModel(clip, config.decoder, num_words=len(self.vocabulary))

    def targets(self, batch: Batch) -> Tensor:
        """Word numbers (B, R, S) of each clip's captions, each with its END; PAD elsewhere."""
        sentences = [[self.vocabulary.encode(text) for text in clip.captions] for clip in batch.clips]
        return pad_groups(sentences)

    def run_model(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scores (B, R, S, 3) of each word of the references, which the model reads (teacher forcing).

        They are the word's log-likelihood; 1 if the word was the model's first choice, else 0; the weighted
        penalty of its sentence's attention.
        """
        model = cast(CaptionModel, model)
        sentences = self.targets(batch).to(batch.maps.device)
        return _read_references(model, model.remember(batch.maps, batch.lengths), sentences)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over words (...) of cross-entropy and the attention's penalty, from scores (..., 3)."""
        scores = outputs[targets != PAD]  # (M, 3)
        return (scores[:, 2] - scores[:, 0]).mean()

    def keep_rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (M, 3) and numbers (M,) of all words."""
        return outputs[targets != PAD], targets[targets != PAD]

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Metrics with teacher forcing, from scores (M, 3)."""
        loss = -float(outputs[:, 0].mean())
        accuracy = float(outputs[:, 1].mean())
        return {"loss": loss, "perplexity": perplexity(loss), "teacher_forced_accuracy": accuracy}

    def answers(self, model: nn.Module, batch: Batch) -> list[Caption]:
        """The captions that the decoder says, and the scores of their references if all clips have some."""
        model = cast(CaptionModel, model)
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
            outputs = _read_references(model, memory, targets.to(batch.maps.device)).cpu()  # (B, R, S, 3)
            scores = [rows[words != PAD] for rows, words in zip(outputs, targets, strict=True)]
        num_frames = batch.maps.shape[1]
        has_steps = model.clip.remembers_steps and model.config.inject == "attention"
        captions = []
        for sentence, score, length in zip(sentences, scores, batch.lengths.tolist(), strict=True):
            words = tuple(self.vocabulary.words[number] for number in sentence.words)
            looks = sentence.attention  # (S, L)
            shape = (len(words), num_frames, looks.shape[1] // num_frames)
            attention = looks.reshape(shape)[:, :length] if has_steps else None
            captions.append(Caption(join_words(words), sentence, words, attention, score))
        return captions

    def finite_part(self, output: Caption) -> Tensor:
        """The log-probabilities of the references' words, and that of the caption."""
        return torch.cat([output.scores[:, 0], torch.tensor([output.sentence.log_probability])])

    def read(self, predictions: Predictions) -> list[Said]:
        """What the decoder says of each clip; all its captions count."""
        captions: tuple[Caption, ...] = predictions.outputs
        return [Said.of(caption.text, caption.scores[:, 0]) for caption in captions]

    def render(self, output: Caption, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
        """The caption, and the log-probability of all its words."""
        return [{"caption": output.text, "log_probability": output.sentence.log_probability}]


def _read_references(model: CaptionModel, memory: Memory, sentences: Tensor) -> Tensor:
    """Scores (B, R, S, 3) of the words of sentences (B, R, S); see `Captioning.run_model`."""
    reading = model.read(memory, sentences)
    penalty = reading.penalty[..., None, None].expand(*sentences.shape, 1)
    return torch.cat([word_scores(reading.logits, sentences), penalty], dim=-1)
