"""Attention: what a decoder reads of the clip at each word."""

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
        """Each clip `times` times in a row."""
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
        """Keys (B, L, A), which are `to_keys(memory.states)`, and a query (B, Q).

        Returns the context (B, E) and the weights (B, L), which are 0 where the memory is not valid.
        """
        scores = self.score(torch.tanh(keys + self.to_query(query)[:, None]))[..., 0]  # (B, L)
        weights = scores.masked_fill(~memory.valid, -torch.inf).softmax(dim=1)
        return torch.einsum("bl,ble->be", weights, memory.states), weights


def doubly_stochastic_penalty(attention: Tensor, words: Tensor, valid: Tensor) -> Tensor:
    """How far what each step gets of a sentence's attention is from 1: squared, mean of steps (M,).

    The regulariser of Show, Attend and Tell (Xu et al. 2015, arXiv 1502.03044, section 4.2.1), which sums
    over steps where we take the mean, so that its weight does not depend on their number.

    Attention (M, S, L) at each word, masks (M, S) of the words and (M, L) of the steps.
    """
    received = (attention * words[..., None]).sum(dim=1)  # (M, L)
    return (1 - received).square().masked_fill(~valid, 0).sum(dim=1) / valid.sum(dim=1)
