"""Captioning: a model of a clip and a decoder, which says what the clip shows."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.learn.models.attention import Memory, doubly_stochastic_penalty
from pipeline.learn.models.clip import ClipModel
from pipeline.learn.models.decoder import teacher_words, unroll
from pipeline.learn.models.decoder_cells import DECODER_BUILDERS
from pipeline.learn.models.draws import Draws
from pipeline.learn.models.frames import check_sentences
from pipeline.learn.vocabulary import PAD
from pipeline.settings.words import DecoderConfig


class Reading(NamedTuple):
    """A decoder's outputs while it reads captions (B, R, S): R of up to S words for each clip."""

    logits: Tensor  # (B, R, S, V): of the next word
    attention: Tensor  # (B, R, S, L): weights of the clip's states; L is 0 without attention
    penalty: Tensor  # (B, R): of the attention, times the weight `doubly_stochastic`


class CaptionModel(Draws):
    """A decoder that reads the outputs of a model of the clip and, with attention, the model's states.

    The baseline has a single state, its outputs: attention has no choice there.
    """

    num_training_steps: Tensor

    def __init__(self, clip: ClipModel, config: DecoderConfig, *, num_words: int) -> None:
        super().__init__()
        self.clip = clip
        self.config = config
        self.decoder = DECODER_BUILDERS[config.cell](
            config,
            num_words=num_words,
            summary_size=clip.head.out_features,
            memory_size=clip.memory_size,
        )
        self.register_buffer("num_training_steps", torch.tensor(0))

    def remember(self, maps: Tensor, lengths: Tensor | None = None) -> Memory:
        """Maps (B, T, C, H, W) and lengths (B,) in frames -> the clips as decoders see them."""
        return self.clip.remember(maps, lengths)

    def forward(self, maps: Tensor, lengths: Tensor | None, sentences: Tensor) -> Reading:
        """Maps (B, T, C, H, W), lengths (B,) in frames and captions (B, R, S) as in `read`."""
        return self.read(self.remember(maps, lengths), sentences)

    def read(self, memory: Memory, sentences: Tensor) -> Reading:
        """Read captions (B, R, S): word numbers, each caption's END, then PAD (teacher forcing).

        In training, `scheduled_sampling` is the share of words that are replaced by the decoder's own.
        Raises ShapeError for captions of another shape.
        """
        check_sentences(sentences, batch_size=memory.summary.shape[0], what="captions")
        shape = sentences.shape
        repeated = memory.repeat(shape[1])
        words = teacher_words(sentences.flatten(0, 1))  # (B * R, S)
        if share := self._sampled_share():
            logits, attention = unroll(
                self.decoder, repeated, words, sampled_share=share, generator=self.generator
            )
        else:
            logits, attention = self.decoder(repeated, words)
        penalty = logits.new_zeros(len(words))
        if self.config.doubly_stochastic and attention.shape[2]:
            given = sentences.flatten(0, 1) != PAD
            penalty = doubly_stochastic_penalty(attention, given, repeated.valid)
        return Reading(
            logits.view(*shape, logits.shape[2]),
            attention.view(*shape, attention.shape[2]),
            self.config.doubly_stochastic * penalty.view(shape[:2]),
        )

    def _sampled_share(self) -> float:
        """Grows from 0 to `scheduled_sampling`; the count is saved with the weights, for a resumed run."""
        if not self.training or not self.config.scheduled_sampling:
            return 0.0
        self.num_training_steps += 1
        progress = min(1.0, int(self.num_training_steps) / self.config.scheduled_sampling_steps)
        return self.config.scheduled_sampling * progress
