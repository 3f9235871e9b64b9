"""Summaries: the steps of a sequence (B, L, E) become one vector (B, E). Padding has no influence."""

from collections.abc import Callable

import torch
from torch import Tensor


def valid_steps(steps: Tensor, lengths: Tensor) -> Tensor:
    """Mask (B, L, 1) of the steps (B, L, E) before each sequence's length (B,)."""
    positions = torch.arange(steps.shape[1], device=steps.device)
    return (positions < lengths.to(steps.device)[:, None])[..., None]


def last(steps: Tensor, lengths: Tensor, *, bidirectional: bool) -> Tensor:
    """The last valid step. The backward half of a bidirectional net ends at position 0 and is read there."""
    rows = torch.arange(len(steps), device=steps.device)
    ends = steps[rows, lengths.to(steps.device) - 1]  # (B, E)
    if not bidirectional:
        return ends
    half = steps.shape[-1] // 2
    return torch.cat([ends[:, :half], steps[:, 0, half:]], dim=-1)


def mean(steps: Tensor, lengths: Tensor, *, bidirectional: bool = False) -> Tensor:  # noqa: ARG001
    """The mean of the valid steps."""
    kept = steps.masked_fill(~valid_steps(steps, lengths), 0)
    return kept.sum(dim=1) / lengths.to(steps.device)[:, None]


def maximum(steps: Tensor, lengths: Tensor, *, bidirectional: bool = False) -> Tensor:  # noqa: ARG001
    """The largest value of each feature over the valid steps."""
    return steps.masked_fill(~valid_steps(steps, lengths), -torch.inf).amax(dim=1)


SUMMARIES: dict[str, Callable[..., Tensor]] = {"last": last, "mean": mean, "max": maximum}
