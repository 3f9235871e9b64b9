"""The parts of transformers (Vaswani et al. 2017, arXiv 1706.03762) that torch.nn does not have."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.learn.models.draws import FeatureDropout
from pipeline.learn.models.encoder import Sequences, zero_padding


def position_signal(sequence: Tensor) -> Tensor:
    """Sines and cosines (L, D) that tell the steps of a sequence (B, L, D) apart; D is even."""
    length, size = sequence.shape[1:]
    positions = torch.arange(length, device=sequence.device)[:, None]
    rates = torch.exp(torch.arange(0, size, 2, device=sequence.device) * (-math.log(10000) / size))
    return torch.stack([torch.sin(positions * rates), torch.cos(positions * rates)], dim=2).flatten(1)


def causal_mask(sequence: Tensor) -> Tensor:
    """Mask (L, L) bool for a sequence (B, L, D): True where the column's step is later than the row's."""
    length = sequence.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=sequence.device).triu(1)


class AttentionWithWeights(nn.MultiheadAttention):
    """Torch's attention, always with its weights (B, S, L): the mean over heads.

    `nn.TransformerDecoder` does not ask for the weights; a forward hook reads them from this module.
    """

    def forward(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As in torch."""
        return super().forward(*args, **{**options, "need_weights": True})


class TransformerEncoder(nn.Module):
    """Dropout, a learned linear projection, positions, and self-attention among a sequence's valid steps.

    Its inputs and outputs are those of `RecurrentEncoder`. A step sees all steps if `bidirectional`, else
    itself and the earlier ones.
    """

    def __init__(
        self,
        num_features: int,
        *,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.dropout = FeatureDropout(dropout)
        self.projection = nn.Linear(num_features, hidden_size)
        layer = nn.TransformerEncoderLayer(
            hidden_size,
            num_heads,
            dim_feedforward=4 * hidden_size,
            dropout=dropout,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, num_layers, norm=nn.LayerNorm(hidden_size), enable_nested_tensor=False
        )
        self.num_outputs = hidden_size

    def forward(self, sequences: Sequences) -> Tensor:
        """Steps (B, L, D) -> states (B, L, E), zeros after each length."""
        steps = self.projection(self.dropout(sequences.zero_padded))
        steps = steps + position_signal(steps)  # (B, L, E)
        valid = sequences.valid
        states: Tensor = self.layers(
            steps,
            mask=None if self.bidirectional else causal_mask(steps),
            is_causal=False,  # None would have torch look at the mask, which can't be exported
            src_key_padding_mask=None if valid is None else ~valid[..., 0],
        )
        return zero_padding(states, valid)
