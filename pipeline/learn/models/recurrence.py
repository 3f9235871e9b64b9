"""Recurrent nets: LSTM, GRU or plain RNN, of one layer or several."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pipeline.learn.models.draws import Dropout

Net = type[nn.LSTM | nn.GRU | nn.RNN]


class Recurrence(nn.Module):
    """Layers of one net, and dropout between them.

    The dropout of torch's own nets draws from a global generator; cuDNN's cannot be set to a seed again.
    """

    def __init__(
        self,
        net: Net,
        num_inputs: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_outputs = hidden_size * (2 if bidirectional else 1)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            net(inputs, hidden_size, batch_first=True, bidirectional=bidirectional)
            for inputs in [num_inputs, *[self.num_outputs] * (num_layers - 1)]
        )

    def forward(self, steps: Any, states: tuple[Tensor, ...] | None = None) -> tuple[Any, tuple[Tensor, ...]]:
        """Steps (B, L, D), or packed -> the last layer's (B, L, E) or packed, and the last states.

        States, those before the first step too, are (h, c) or (h,), each (layers * directions, B, H).
        """
        before: list[Any] = [None] * len(self.layers)
        if states is not None:
            parts = zip(*(state.chunk(len(self.layers)) for state in states), strict=True)
            before = [part if len(part) == 2 else part[0] for part in parts]
        after = []
        for number, (layer, state) in enumerate(zip(self.layers, before, strict=True)):
            if number:
                steps = self._drop(steps)
            steps, end = layer(steps, state)
            after.append(end if isinstance(end, tuple) else (end,))
        if len(after) == 1:
            return steps, after[0]
        return steps, tuple(torch.cat(ends) for ends in zip(*after, strict=True))

    def _drop(self, steps: Any) -> Any:
        if isinstance(steps, PackedSequence):
            return steps._replace(data=self.dropout(steps.data))
        return self.dropout(steps)
