"""Encoders: a sequence in, a state at every step out."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pipeline.learn.models.draws import FeatureDropout
from pipeline.learn.models.recurrence import Net, Recurrence
from pipeline.learn.models.summaries import valid_steps


@dataclass(frozen=True)
class Packed:
    """The N valid steps of sequences, as torch's recurrent nets read them."""

    steps: PackedSequence  # (N, D)
    rows: Tensor  # (N,) int64: the place of each among all B * L steps


class Sequences:
    """Sequences of steps, padded to the longest. What several encoders read of them is computed once."""

    def __init__(self, steps: Tensor, lengths: Tensor | None = None) -> None:
        self.steps = steps  # (B, L, D)
        self.lengths = lengths  # (B,), on the CPU; None: all L steps are valid

    @cached_property
    def valid(self) -> Tensor | None:
        """Mask (B, L, 1) of the valid steps; None: all are."""
        return None if self.lengths is None else valid_steps(self.steps, self.lengths)

    @cached_property
    def zero_padded(self) -> Tensor:
        """The steps (B, L, D), with zeros after each length."""
        return zero_padding(self.steps, self.valid)

    @cached_property
    def packed(self) -> Packed | None:
        """The valid steps alone; None: all are valid.

        What is not packed is faster on a GPU, and can be exported.
        """
        if self.lengths is None or bool((self.lengths == self.steps.shape[1]).all()):
            return None
        # As `pack_padded_sequence` does it, in a quarter of its time: each value is copied once.
        lengths, order = self.lengths.sort(descending=True)
        positions = torch.arange(int(lengths[0]))[:, None]
        valid = positions < lengths  # (L, B)
        rows = (order * self.steps.shape[1] + positions)[valid].to(self.steps.device)
        data = self.steps.flatten(0, 1).index_select(0, rows)  # (N, D)
        order = order.to(self.steps.device)
        return Packed(PackedSequence(data, valid.sum(dim=1), order, order.argsort()), rows)


class Encoder(Protocol):
    """A module that reads sequences."""

    num_outputs: int  # E

    def __call__(self, sequences: Sequences) -> Tensor:
        """Steps (B, L, D) -> states (B, L, E), zeros after each length."""
        ...


class RecurrentEncoder(nn.Module):
    """Dropout, an optional learned linear projection, and an LSTM, GRU or plain RNN over valid steps only.

    Dropout takes the same features from all steps of a sequence (Gal and Ghahramani 2016, arXiv
    1512.05287). A mask for each step is no more accurate here, and drawing it took 44 % of an epoch's
    time with steps of 8192 features on a CPU.
    """

    def __init__(
        self,
        num_features: int,
        *,
        net: Net,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        projection: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = FeatureDropout(dropout)
        self.projection = nn.Linear(num_features, projection) if projection else nn.Identity()
        self.recurrence = Recurrence(
            net,
            projection or num_features,
            hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        self.num_outputs = self.recurrence.num_outputs

    def forward(self, sequences: Sequences) -> Tensor:
        """Steps (B, L, D) -> states (B, L, E), zeros after each length.

        E is `num_outputs`: the forward half, then the backward half of a bidirectional net.
        """
        packed, (num_sequences, num_steps, _) = sequences.packed, sequences.steps.shape
        states: Tensor  # (B, L, E)
        if packed is None:
            states, _ = self.carry(sequences.steps)
            return states
        data = packed.steps.data  # (N, D)
        if self.dropout.drops:
            mask = self.dropout.mask(data, (num_sequences, data.shape[1]))
            mask = mask.index_select(0, packed.rows // num_steps)
            data = data * mask if data.requires_grad else mask.mul_(data)
        outputs, _ = self.recurrence(packed.steps._replace(data=self.projection(data)))
        states = outputs.data.new_zeros(num_sequences * num_steps, self.num_outputs)
        states = states.index_copy(0, packed.rows, outputs.data)
        return states.view(num_sequences, num_steps, -1)

    def carry(
        self, steps: Tensor, before: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Steps (B, L, D), all of them valid -> states (B, L, E), and the last ones of each direction.

        Those, and the states `before` the first step, are as in `Recurrence.forward`.
        """
        states: Tensor
        states, after = self.recurrence(self.projection(self.dropout(steps)), before)
        return states, after


class NoEncoder(nn.Module):
    """Dropout and a linear projection of each step by itself: no step influences another.

    For locations of a map to which a decoder attends, as in Show, Attend and Tell (arXiv 1502.03044).
    """

    def __init__(self, num_features: int, *, projection: int | None, dropout: float) -> None:
        super().__init__()
        self.dropout = FeatureDropout(dropout)
        self.projection = nn.Linear(num_features, projection) if projection else nn.Identity()
        self.num_outputs = projection or num_features

    def forward(self, sequences: Sequences) -> Tensor:
        """Steps (B, L, D) -> states (B, L, E), zeros after each length."""
        return zero_padding(self.projection(self.dropout(sequences.zero_padded)), sequences.valid)


def zero_padding(steps: Tensor, valid: Tensor | None) -> Tensor:
    """Steps (B, L, D), with zeros where they are not valid (B, L, 1); `valid` None: all are."""
    return steps if valid is None else steps.masked_fill(~valid, 0)
