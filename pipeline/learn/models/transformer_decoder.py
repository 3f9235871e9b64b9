"""The transformer decoder: self-attention over the words so far."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.learn.models.attention import Memory
from pipeline.learn.models.decoder import State, Step
from pipeline.learn.models.draws import Dropout
from pipeline.learn.models.transformer import AttentionWithWeights, causal_mask, position_signal
from pipeline.learn.vocabulary import PAD
from pipeline.settings.words import DecoderConfig


class TransformerDecoder(nn.Module):
    """Self-attention over the words so far (Vaswani et al. 2017, arXiv 1706.03762; norms come first).

    `inject` says how the clip enters: its summary is the first element of the sequence (start) or is added
    to every word (every_step), or each layer attends to all of its states (attention; the weights that are
    returned are the last layer's).
    """

    keeps_words: ClassVar[bool] = True

    def __init__(self, config: DecoderConfig, *, num_words: int, memory_size: int, summary_size: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.inject = config.inject
        self.embedding = nn.Embedding(num_words, size, padding_idx=PAD)
        self.dropout = Dropout(config.dropout)
        clip_size = memory_size if config.inject == "attention" else summary_size
        # The states of an LSTM are small: the norm makes them as large as words are.
        self.from_clip = nn.Sequential(nn.Linear(clip_size, size), nn.LayerNorm(size))
        options: dict[str, Any] = {
            "d_model": size,
            "nhead": config.num_heads,
            "dim_feedforward": 4 * size,
            "dropout": config.dropout,
            "batch_first": True,
            "norm_first": True,
        }
        self.layers: nn.TransformerDecoder | nn.TransformerEncoder
        if config.inject == "attention":
            self.layers = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(**options), config.num_layers, norm=nn.LayerNorm(size)
            )
            self.layers.layers[-1].multihead_attn = AttentionWithWeights(
                size, config.num_heads, dropout=config.dropout, batch_first=True
            )
        else:
            self.layers = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**options),
                config.num_layers,
                norm=nn.LayerNorm(size),
                enable_nested_tensor=False,
            )
        self.head = nn.Linear(size, num_words)

    def first_state(self, memory: Memory) -> State:
        """No words yet: (B, 0)."""
        return (torch.empty(memory.summary.shape[0], 0, dtype=torch.int64, device=memory.summary.device),)

    def step(self, words: Tensor, state: State, memory: Memory) -> Step:
        """Read the next word (B,) int64 of each sentence, and again all words before it."""
        prefix = torch.cat([state[0], words[:, None]], dim=1)  # (B, S)
        logits, attention = self(memory, prefix)
        return Step(logits[:, -1], (prefix,), attention[:, -1])

    def forward(self, memory: Memory, words: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S, V) and attention (B, S, L) after each of the words (B, S) int64."""
        inputs = self.embedding(words)  # (B, S, size)
        if self.inject == "start":
            inputs = torch.cat([self.from_clip(memory.summary)[:, None], inputs], dim=1)
        elif self.inject == "every_step":
            inputs = inputs + self.from_clip(memory.summary)[:, None]
        inputs = self.dropout(inputs + position_signal(inputs))
        mask = causal_mask(inputs)
        if self.inject == "attention":
            return self._attend(inputs, mask, memory)
        outputs = self.layers(inputs, mask=mask, is_causal=False)[:, -words.shape[1] :]
        return self.head(outputs), outputs.new_empty(*words.shape, 0)

    def _attend(self, inputs: Tensor, mask: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        weights: list[Tensor] = []
        last = self.layers.layers[-1].multihead_attn
        hook = last.register_forward_hook(lambda _module, _inputs, outputs: weights.append(outputs[1]))
        # `tgt_is_causal=None` would have torch look at the mask, which can't be exported.
        outputs = self.layers(
            inputs,
            self.from_clip(memory.states),
            tgt_mask=mask,
            tgt_is_causal=False,
            memory_key_padding_mask=~memory.valid,
        )
        hook.remove()
        return self.head(outputs), weights[0]
