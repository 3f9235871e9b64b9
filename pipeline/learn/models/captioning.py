"""Models that say what a clip shows: a model of the clip, and a decoder."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.learn.models.attention import Memory, doubly_stochastic_penalty
from pipeline.learn.models.clip import MeanPoolModel, RecurrentModel
from pipeline.learn.models.decoder import DECODERS, DecoderConfig, teacher_words, unroll
from pipeline.learn.models.frames import check_sentences
from pipeline.learn.models.summaries import valid_steps
from pipeline.learn.vocabulary import PAD


class Reading(NamedTuple):
    """What a decoder thinks while it reads captions (B, R, S): R of up to S words for each clip."""

    logits: Tensor  # (B, R, S, V): of the next word
    attention: Tensor  # (B, R, S, L); L is 0 without attention
    penalty: Tensor  # (B, R): of the attention, weighted


class CaptionModel(nn.Module):
    """A decoder that is given a clip: the outputs of its model, and with attention its states.

    The baseline has no states: its attention has one vector to look at, the clip's mean.
    """

    num_training_steps: Tensor

    def __init__(
        self, clip: RecurrentModel | MeanPoolModel, config: DecoderConfig, *, num_words: int
    ) -> None:
        super().__init__()
        self.clip = clip
        self.config = config
        summary_size = clip.head.out_features
        self.decoder = DECODERS[config.cell](
            config,
            num_words=num_words,
            summary_size=summary_size,
            memory_size=clip.encoder.num_outputs if isinstance(clip, RecurrentModel) else summary_size,
        )
        self.register_buffer("num_training_steps", torch.tensor(0))

    def remember(self, maps: Tensor, lengths: Tensor | None = None) -> Memory:
        """Maps (B, T, C, H, W) and lengths (B,) in frames -> what decoders see of the clips."""
        if not isinstance(self.clip, RecurrentModel):
            summary = self.clip(maps, lengths)  # (B, K)
            return Memory(summary[:, None], torch.ones_like(summary[:, :1], dtype=torch.bool), summary)
        states, num_steps = self.clip.encode(maps, lengths)  # (B, T, S, E)
        summary = self.clip.answer(states, num_steps)
        states = states.flatten(1, 2)  # (B, L, E)
        return Memory(states, valid_steps(states, num_steps)[..., 0], summary)

    def forward(self, maps: Tensor, lengths: Tensor | None, sentences: Tensor) -> Reading:
        """Maps (B, T, C, H, W), lengths (B,) in frames, captions (B, R, S): see `read`."""
        return self.read(self.remember(maps, lengths), sentences)

    def read(self, memory: Memory, sentences: Tensor) -> Reading:
        """The decoder reads captions (B, R, S) of word numbers with their END, then PAD (teacher forcing).

        In training it reads a share of its own words instead, as `scheduled_sampling` says.
        """
        check_sentences(sentences, batch_size=memory.summary.shape[0], what="captions")
        shape = sentences.shape
        repeated = memory.repeat(shape[1])
        words = teacher_words(sentences.flatten(0, 1))  # (B * R, S)
        if share := self._sampled_share():
            logits, attention = unroll(self.decoder, repeated, words, sampled_share=share)
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
        """Grows from 0 to `scheduled_sampling`. The count travels with the weights: a resumed run goes on."""
        if not self.training or not self.config.scheduled_sampling:
            return 0.0
        self.num_training_steps += 1
        progress = min(1.0, int(self.num_training_steps) / self.config.scheduled_sampling_steps)
        return self.config.scheduled_sampling * progress
