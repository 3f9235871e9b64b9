"""Random draws of a model in training: its numbers are the same, whatever else is trained beside it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_GLOBAL_STATE = threading.Lock()  # whoever holds it may change the state of torch's global generators

# What torch itself draws in these comes from its global generators. (Of recurrent nets, ours have one layer.)
_DRAWS_GLOBALLY = (nn.MultiheadAttention, nn.modules.dropout._DropoutNd, nn.RReLU)


class Draws(nn.Module):
    """A module that draws in training, from `generator`; None: from torch's global generator.

    A generator with the same seed gives the same numbers as the global one.
    """

    generator: torch.Generator | None = None


class Dropout(Draws):
    """In training, zeros a share `p` of values, and scales the others up, as `nn.Dropout` does."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape."""
        return values * self.mask(values, values.shape) if self.drops else values

    @property
    def drops(self) -> bool:
        """Whether values are dropped now."""
        return self.training and self.p > 0

    def mask(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Factors of this shape for `values`: 0, or the scale of what is kept."""
        return values.new_empty(shape).bernoulli_(1 - self.p, generator=self.generator).div_(1 - self.p)


class FeatureDropout(Dropout):
    """Dropout that takes the same features from all steps (B, L, D) of a sequence, as `nn.Dropout1d` does."""

    def forward(self, steps: Tensor) -> Tensor:
        """Steps (B, L, D)."""
        return steps * self.mask(steps, (len(steps), 1, steps.shape[2])) if self.drops else steps


class ModelDraws:
    """The generators of a model in training, for its device and the CPU.

    Models that draw from torch's global generators compute `in_turn`, with the states of their own.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, in_turn: bool = False) -> None:
        self._generators = {"cpu": torch.Generator()}
        if device.type == "cuda":
            self._generators["cuda"] = torch.Generator(device)
        self._device = device
        self._in_turn = in_turn or any(map(_draws_globally, model.modules()))
        for module in model.modules():
            if isinstance(module, Draws):
                module.generator = None if self._in_turn else self._generators[device.type]

    def seed(self, seed: int) -> None:
        """Begin the numbers of this seed."""
        for generator in self._generators.values():
            generator.manual_seed(seed)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Compute outputs in this block, in turn where need be."""
        if not self._in_turn:
            yield
            return
        pairs = [(self._generators["cpu"], torch.default_generator)]
        if self._device.type == "cuda":
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            pairs.append((self._generators["cuda"], torch.cuda.default_generators[index]))
        with _GLOBAL_STATE:
            for own, shared in pairs:
                shared.set_state(own.get_state())
            yield
            for own, shared in pairs:
                own.set_state(shared.get_state())


def _draws_globally(module: nn.Module) -> bool:
    """Whether the module may draw from torch's global generators: a stranger's may."""
    room = type(module).__module__.partition(".")[0]
    return isinstance(module, _DRAWS_GLOBALLY) or room not in ("torch", "pipeline")
