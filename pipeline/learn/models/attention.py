"""Attention: the part of a clip that a decoder reads at each word."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """An encoded clip (or image), as decoders see it. B clips, L steps, E features."""

    states: Tensor  # (B, L, E): a state for every step of the scan
    valid: Tensor  # (B, L) bool: False after the clip's last step
    summary: Tensor  # (B, E)

    def repeat(self, times: int) -> "Memory":
        """A memory of `times` as many clips: each one `times` times in a row."""
        tensors = (self.states, self.valid, self.summary)
        return Memory(*(tensor.repeat_interleave(times, dim=0) for tensor in tensors))


class AdditiveAttention(nn.Module):
    """Weights from a small net on state and query (Bahdanau et al. 2014, arXiv 1409.0473)."""

    def __init__(self, *, memory_size: int, query_size: int, size: int) -> None:
        super().__init__()
        self.to_keys = nn.Linear(memory_size, size)
        self.to_query = nn.Linear(query_size, size, bias=False)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(self, memory: Memory, keys: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, L, A), made by `to_keys(memory.states)`, and a query (B, Q) -> context, weights.

        The context is (B, E); the weights (B, L) are 0 where the memory is not valid.
        """
        scores = self.score(torch.tanh(keys + self.to_query(query)[:, None]))[..., 0]  # (B, L)
        weights = scores.masked_fill(~memory.valid, -torch.inf).softmax(dim=1)
        return torch.einsum("bl,ble->be", weights, memory.states), weights


def doubly_stochastic_penalty(attention: Tensor, words: Tensor, valid: Tensor) -> Tensor:
    """Mean squared deviation from 1 of each step's total attention, for each sentence (M,).

    This is the regulariser of Show, Attend and Tell (Xu et al. 2015, arXiv 1502.03044, section 4.2.1), but
    for a mean over steps instead of a sum: its weight then does not depend on their number.

    Takes the attention (M, S, L) at each word, and masks of the words (M, S) and of the steps (M, L).
    """
    received = (attention * words[..., None]).sum(dim=1)  # (M, L)
    return (1 - received).square().masked_fill(~valid, 0).sum(dim=1) / valid.sum(dim=1)
