"""Encoders: a sequence in, a state at every step out."""

from typing import Protocol

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pipeline.learn.models.summaries import valid_steps


class Encoder(Protocol):
    """A module that reads sequences."""

    num_outputs: int  # E

    def __call__(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Steps (B, L, D) and lengths (B,), on the CPU -> states (B, L, E), zeros after each length.

        Without `lengths` all L steps are valid.
        """
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
        net: type[nn.LSTM | nn.GRU | nn.RNN],
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        projection: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout1d(dropout)
        self.projection = nn.Linear(num_features, projection) if projection else nn.Identity()
        self.recurrence = net(
            projection or num_features,
            hidden_size,
            num_layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.num_outputs = hidden_size * (2 if bidirectional else 1)

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Steps (B, L, D) and lengths (B,) on the CPU -> states (B, L, E), zeros after each length.

        E is `num_outputs`: the forward half, then the backward half of a bidirectional net. Without
        `lengths` all L steps are valid; then nothing is packed, which is faster on a GPU and can be exported.
        """
        sequence = self.dropout(sequence.transpose(1, 2)).transpose(1, 2)  # (B, L, D)
        if lengths is None or bool((lengths == sequence.shape[1]).all()):
            states: Tensor = self.recurrence(self.projection(sequence))[0]
            return states  # (B, L, E)
        packed = pack_padded_sequence(sequence, lengths, batch_first=True, enforce_sorted=False)
        projected = self.projection(packed.data)  # (sum of lengths, P)
        packed_states, _ = self.recurrence(
            PackedSequence(projected, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        )
        padded, _ = pad_packed_sequence(packed_states, batch_first=True, total_length=sequence.shape[1])
        return padded  # (B, L, E)


class NoEncoder(nn.Module):
    """Dropout and a linear projection of each step by itself: no step influences another.

    For locations of a map to which a decoder attends, as in Show, Attend and Tell (arXiv 1502.03044).
    """

    def __init__(self, num_features: int, *, projection: int | None, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout1d(dropout)
        self.projection = nn.Linear(num_features, projection) if projection else nn.Identity()
        self.num_outputs = projection or num_features

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Steps (B, L, D) and lengths (B,) -> states (B, L, E), zeros after each length (None: L)."""
        valid = None if lengths is None else valid_steps(sequence, lengths)  # (B, L, 1)
        steps = self.projection(self.dropout(zero_padding(sequence, valid).transpose(1, 2)).transpose(1, 2))
        return zero_padding(steps, valid)


def zero_padding(steps: Tensor, valid: Tensor | None) -> Tensor:
    """Steps (B, L, D), with zeros where they are not valid (B, L, 1); `valid` None: all are."""
    return steps if valid is None else steps.masked_fill(~valid, 0)
