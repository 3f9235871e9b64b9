"""One forward pass, watched: which modules run, in which order, and what each of them gives.

Tensors on the device "meta" have shapes and no values: watching computes nothing. Everything that is known of
a network's inside comes from such a pass: its taps, where it can be cut, what can be folded.
"""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Call:
    """A module's call, at its end."""

    name: str  # dotted, as in `named_modules`
    kind: str  # the module's class
    inputs: tuple[Any, ...]
    input_version: int | None  # of the first input's tensor when the call began
    output: Any
    version: int | None  # of the output's tensor now: an operation in place raises it

    @property
    def tensor(self) -> Tensor | None:
        """What the module gives, or the first tensor of that."""
        return first_tensor(self.output)

    @property
    def is_overwritten(self) -> bool:
        """Whether an operation of the watched pass has changed the output in place."""
        return self.tensor is not None and self.tensor._version != self.version


@dataclass(frozen=True)
class Pass:
    """The calls of a pass in the order of their ends; those before `error`, if there was one."""

    calls: tuple[Call, ...]
    num_calls: Counter[str]  # by the module's name
    num_uses: Counter[int]  # by the id of a tensor: the functions that took it
    error: Exception | None

    @property
    def reason(self) -> str:
        """The error's first line, for a sentence; empty without an error."""
        if self.error is None:
            return ""
        lines = str(self.error).strip().splitlines() or [type(self.error).__name__]
        return lines[0].rstrip(".!")

    def find(self, name: str) -> Call | None:
        """The first call of a module; None for one that was not called."""
        return next((call for call in self.calls if call.name == name), None)


def first_tensor(output: Any) -> Tensor | None:
    """A module's output itself, or the first tensor in a tuple, a list or a mapping."""
    if isinstance(output, Tensor):
        return output
    values = (
        output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    )
    return next((value for value in values if isinstance(value, Tensor)), None)


def watch(network: nn.Module, image_shape: tuple[int, ...], *, batch_size: int = 2) -> Pass:
    """Watch a pass of images (B, *image_shape) through a copy of a network, without computing anything."""
    copy = deepcopy(network).to("meta")
    return watch_pass(copy, torch.empty(batch_size, *image_shape, device="meta"))


def watch_pass(network: nn.Module, images: Tensor) -> Pass:
    """Watch a pass of `images` through a network itself, on their device."""
    calls: list[Call] = []
    begun: list[int | None] = []  # the version of the first input of each call that has not ended

    def begin(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        begun.append(_version(inputs))

    def end(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls.append(Call(name, type(module).__name__, inputs, begun.pop(), output, _version(output)))

        return hook

    handles = []
    for name, module in network.named_modules():
        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end(name))]
    uses = _Uses()
    error: Exception | None = None
    try:
        with torch.no_grad(), uses:
            network(images)
    except Exception as exception:  # of a network that is not ours: too small images, a device, a shape, ...
        error = exception
    finally:
        for handle in handles:
            handle.remove()
    return Pass(tuple(calls), Counter(call.name for call in calls), uses.counter, error)


def _version(values: Any) -> int | None:
    tensor = first_tensor(values)
    return None if tensor is None else tensor._version


class _Uses(TorchFunctionMode):
    """Counts the functions with a tensor as result that take a tensor, by the tensor's id."""

    def __init__(self) -> None:
        super().__init__()
        self.counter: Counter[int] = Counter()
        self._alive: list[Any] = []  # an id stays a tensor's own as long as the tensor lives

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if first_tensor(result) is not None:
            taken = _flat((args, list((kwargs or {}).values())))
            self.counter.update(map(id, taken))
            self._alive += taken
        return result


def _flat(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _flat(value)] if isinstance(values, tuple | list) else []
