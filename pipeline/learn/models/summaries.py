"""Summaries: the states of a sequence (B, L, E) become one vector (B, E). Padding has no influence."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def valid_steps(steps: Tensor, lengths: Tensor) -> Tensor:
    """Mask (B, L, 1) of the steps (B, L, E) before each sequence's length (B,)."""
    positions = torch.arange(steps.shape[1], device=steps.device)
    return (positions < lengths.to(steps.device)[:, None])[..., None]


def full_lengths(steps: Tensor) -> Tensor:
    """The lengths (B,) of steps (B, L, E) without padding."""
    return torch.full((steps.shape[0],), steps.shape[1])


def last(steps: Tensor, lengths: Tensor, *, bidirectional: bool) -> Tensor:
    """The last valid step (B, E) of steps (B, L, E) with lengths (B,).

    With `bidirectional` the second half of E is read at position 0, where the backward net ends.
    """
    rows = torch.arange(steps.shape[0], device=steps.device)  # len() would be a constant in an export
    ends = steps[rows, lengths.to(steps.device) - 1]  # (B, E)
    if not bidirectional:
        return ends
    half = steps.shape[-1] // 2
    return torch.cat([ends[:, :half], steps[:, 0, half:]], dim=-1)


def mean(steps: Tensor, lengths: Tensor, *, bidirectional: bool = False) -> Tensor:  # noqa: ARG001
    """The mean (B, E) of the valid steps of (B, L, E), with lengths (B,)."""
    kept = steps.masked_fill(~valid_steps(steps, lengths), 0)
    return kept.sum(dim=1) / lengths.to(steps.device)[:, None]


def maximum(steps: Tensor, lengths: Tensor, *, bidirectional: bool = False) -> Tensor:  # noqa: ARG001
    """The largest value of each feature (B, E) over the valid steps of (B, L, E), with lengths (B,)."""
    return steps.masked_fill(~valid_steps(steps, lengths), -torch.inf).amax(dim=1)


class Attention(nn.Module):
    """A mean whose weights are learned: softmax over the valid steps of v . tanh(W step + b).

    Equations 5 to 7 of Yang et al. 2016, Hierarchical Attention Networks for Document Classification.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, num_features)
        self.score = nn.Linear(num_features, 1, bias=False)

    def forward(self, steps: Tensor, lengths: Tensor, *, bidirectional: bool = False) -> Tensor:  # noqa: ARG002
        """The weighted mean (B, E) of the valid steps of (B, L, E), with lengths (B,)."""
        kept = steps.masked_fill(~valid_steps(steps, lengths), 0)
        return (self.weights(kept, lengths)[..., None] * kept).sum(dim=1)

    def weights(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """The weight (B, L) of each step of (B, L, E). Weights sum to 1, and are 0 after each length (B,)."""
        scores = self.scores(steps)
        return scores.masked_fill(~valid_steps(steps, lengths), -torch.inf).softmax(dim=1)[..., 0]

    def scores(self, steps: Tensor) -> Tensor:
        """Scores (B, L, 1) of steps (B, L, E), whose softmax over valid steps are the weights."""
        scores: Tensor = self.score(self.hidden(steps).tanh())
        return scores


# Each takes the number of features E, and gives a function of (states, lengths, bidirectional=...) -> (B, E).
SUMMARIES: dict[str, Callable[[int], Callable[..., Tensor]]] = {
    "last": lambda _: last,
    "mean": lambda _: mean,
    "max": lambda _: maximum,
    "attention": Attention,
}
