"""Tails: the layers between two taps, cut out of a network to be trained."""

from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.backbone.inspection import Inspection
from pipeline.backbone.networks import build_network, check_state, default_size, inspect_network, load_state
from pipeline.contract import FeatureContract
from pipeline.errors import ConfigError
from pipeline.settings.networks import ARCHS, check_taps, is_own


def contract_tail(
    contract: FeatureContract, *, until: str, state: Mapping[str, Tensor] | None = None
) -> nn.Sequential:
    """The layers from the contract's tap to the tap `until`; see `tail_module`."""
    return tail_module(
        contract.arch,
        after=contract.tap,
        until=until,
        state=state,
        crop=contract.preprocessing.crop_size,
    )


def tail_module(
    arch: str,
    *,
    after: str,
    until: str,
    state: Mapping[str, Tensor] | None = None,
    crop: tuple[int, int] | None = None,
) -> nn.Sequential:
    """The layers from the tap `after` to the tap `until`, trainable, in eval mode.

    The module takes maps (B, C, h, w) float32 of `after` and gives those of `until`. `state` has a trunk's
    weights, which are copied; without it the weights are undefined until `load_state_dict`. `crop` is the
    (height, width) of the images, by default the size that the network is built for.

    Raises ConfigError for an unknown arch or tap, when `until` is not deeper than `after`, and where the
    layers between them can't be cut out; WeightsError when the weights do not fit.
    """
    if is_own(arch):
        raise ConfigError(
            f"No tail of {arch}: a checkpoint would import its code. Train without one, or cache {until!r}."
        )
    check_taps(arch, [after, until])
    if ARCHS[arch].reads_clips:
        raise ConfigError(f"No tail of {arch}: its cached maps are means over time. Cache {until!r} instead.")
    network = build_network(arch)
    names = _between(inspect_network(arch), after, until, crop or default_size(network))
    if state is not None:
        check_state(arch, state, network)
        load_state(network, {name: tensor.clone() for name, tensor in state.items()})
    tail = nn.Sequential(*(network.get_submodule(name) for name in names))
    if state is None:
        tail.to_empty(device="cpu")
    return tail.requires_grad_(True)


def _between(inspection: Inspection, after: str, until: str, image: tuple[int, int]) -> list[str]:
    """The modules that lead from one tap's output to the other's, each fed by the one before alone."""
    first, last = inspection.call(after, image), inspection.call(until, image)
    calls = inspection.watched(image).calls
    arch, place, end = inspection.arch, calls.index(first), calls.index(last)
    if end <= place:
        taps = ARCHS[arch].taps
        deeper = [tap for tap in taps if calls.index(inspection.call(tap, image)) > place]
        known = (
            f"Available: {', '.join(deeper)}" if deeper else f"{after} is the last tap: cache a shallower one"
        )
        raise ConfigError(f"The tail {until!r} does not come after the cached {after} of {arch}. {known}.")
    refused = f"The layers from {after!r} to {until!r} of {arch} can't be cut out"
    for tap in (after, until):
        if (layout := inspection.shape(tap, image).layout) != "chw":
            raise ConfigError(
                f"{refused}: the output of {tap} has the layout {layout}, and maps are stored as chw. Cache"
                f" {until!r} instead."
            )
    if first.is_overwritten:
        raise ConfigError(
            f"{refused}: a later layer overwrites the output of {after}. Cache {until!r} instead."
        )
    names: list[str] = []
    output, version = first.output, first.version
    while output is not last.output or version != last.version:
        fed = [
            number
            for number in range(place + 1, end + 1)
            if len(calls[number].inputs) == 1
            and calls[number].inputs[0] is output
            and calls[number].input_version == version
        ]
        if not fed:
            raise ConfigError(
                f"{refused}: behind {names[-1] if names else after} the network computes outside of its"
                f" modules, or joins several outputs. Cache {until!r} instead."
            )
        place = fed[-1]  # the outermost: it ends after the modules inside of it
        names.append(calls[place].name)
        output, version = calls[place].output, calls[place].version
    return names
