"""Recurrent nets in exported files: each is one operation, for any number of steps.

Without this module torch's exporter unrolls them: one operation a step of the example.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_NETS = {  # each net in PyTorch: its operation in ONNX, the order of its gates there, its options
    torch.ops.aten.lstm.input: ("LSTM", (0, 3, 1, 2), {}),
    torch.ops.aten.gru.input: ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    torch.ops.aten.rnn_tanh.input: ("RNN", (0,), {}),
}


@contextlib.contextmanager
def whole_recurrences() -> Iterator[None]:
    """Within this context each recurrent net is traced as one operation; it computes no values."""
    with contextlib.ExitStack() as restore:
        for net in _NETS:
            # PyTorch reads the first table while it traces, the second when it lowers the trace.
            tables: list[tuple[dict[Any, Any], Any]] = [
                (net.py_kernels, _COMPOSITE),
                (decomposition_table, net),
            ]
            for table, key in tables:
                restore.callback(table.__setitem__, key, table[key])
                table[key] = _outputs_of_its_shapes
            restore.callback(net._dispatch_cache.clear)
            net._dispatch_cache.clear()
        yield


def _outputs_of_its_shapes(
    steps: Tensor, state: Tensor | list[Tensor], _params: list[Tensor], *options: Any
) -> tuple[Tensor, ...]:
    """States (B, L, E) at steps (B, L, D), and the last ones (layers, B, H)."""
    *_, is_bidirectional, batch_first = options
    _refuse_unless(batch_first=batch_first)
    states = state if isinstance(state, list) else [state]
    num_outputs = states[0].shape[2] * (2 if is_bidirectional else 1)
    return steps.new_empty(*steps.shape[:2], num_outputs), *map(torch.empty_like, states)


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """For `torch.onnx.export`: each net's operation in PyTorch -> the function that writes it in ONNX."""
    return {net: _translation(*how) for net, how in _NETS.items()}


def _translation(name: str, gates: Sequence[int], options: dict[str, int]) -> Callable[..., Any]:
    from onnxscript import opset18

    op: Any = opset18  # whose types are of ONNX's own values

    def sort_gates(weight: Any, size: int) -> Any:
        """(G * H, ...), G gates one after the other, in ONNX's order and with an axis of directions first."""
        rows = [gate * size + row for gate in gates for row in range(size)]
        return op.Unsqueeze(op.Gather(weight, op.Constant(value_ints=rows)), op.Constant(value_ints=[0]))

    def translate(steps: Any, state: Any, params: Any, has_biases: bool, num_layers: int, *more: Any) -> Any:
        *_, is_bidirectional, batch_first = more
        _refuse_unless(batch_first=batch_first, bias=has_biases)
        states = state if isinstance(state, Sequence) else [state]
        num_directions = 2 if is_bidirectional else 1
        direction = "bidirectional" if is_bidirectional else "forward"
        size = params[1].shape[1]
        steps = op.Transpose(steps, perm=[1, 0, 2])  # (L, B, D)
        ends = []
        for layer in range(num_layers):
            of_layer = params[4 * num_directions * layer :][: 4 * num_directions]
            weights = [
                op.Concat(*(sort_gates(weight, size) for weight in of_layer[kind::4]), axis=0)
                for kind in range(4)
            ]  # of inputs (directions, G * H, D) and states, then their biases (directions, G * H)
            first, end = (op.Constant(value_ints=[number * num_directions]) for number in (layer, layer + 1))
            states_of_steps, *last = getattr(op, name)(
                steps,
                *weights[:2],
                op.Concat(*weights[2:], axis=1),
                None,
                *(op.Slice(value, first, end) for value in states),
                hidden_size=size,
                direction=direction,
                **options,
            )
            ends.append(last)
            by_clip = op.Transpose(states_of_steps, perm=[0, 2, 1, 3])  # (L, B, directions, H)
            steps = op.Reshape(by_clip, op.Constant(value_ints=[0, 0, -1]))  # (L, B, E)
        return op.Transpose(steps, perm=[1, 0, 2]), *(
            op.Concat(*layers, axis=0) for layers in zip(*ends, strict=True)
        )

    return translate


def _refuse_unless(**options: bool) -> None:
    for name, is_set in options.items():
        if not is_set:
            raise ValueError(f"A recurrent net is exported with {name}=True only.")
