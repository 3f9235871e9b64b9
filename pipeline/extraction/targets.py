"""Targets: what an extraction computes, the contract and the layout of each tap and view."""

from dataclasses import dataclass
from itertools import product

import torch

from pipeline.backbone import Backbone, Weights
from pipeline.contract import Backend, FeatureContract
from pipeline.settings.extract import ExtractConfig
from pipeline.store import Layout, layout_for


@dataclass(frozen=True)
class Target:
    """The features of a tap and a view: their contract, and the layout that they are stored in."""

    contract: FeatureContract
    layout: Layout


def extracting_backbone(
    weights: Weights, config: ExtractConfig, *, device: torch.device, backend: Backend
) -> Backbone:
    """The network that computes the taps of `config`. Raises what `Backbone` does."""
    return Backbone(
        weights,
        taps=config.taps,
        device=device,
        precision=config.precision,
        backend=backend,
        crop=config.known_preprocessing.crop_size,
        num_frames=config.windows.frames if config.windows else None,
        layouts=config.layouts,
        class_token=config.pooling == "cls",
    )


def make_targets(config: ExtractConfig, weights: Weights, backbone: Backbone) -> list[Target]:
    """The contract and layout of each tap and view of `config`, tap by tap.

    Raises ConfigError for a crop too small for a tap.
    """
    targets = []
    for tap, view in product(config.taps, config.views):
        contract = FeatureContract(
            sampling=config.sampling,
            preprocessing=config.known_preprocessing,
            mean=weights.mean,
            std=weights.std,
            arch=weights.arch,
            weights_sha256=weights.sha256,
            code=weights.code,
            precision=config.precision,
            backend=config.backend,
            tap=tap,
            layout=config.layouts.get(tap),
            pooling=config.pooling,
            dtype=config.dtype,
            view=view,
            windows=config.windows,
        )
        channels, height, width = backbone.map_shape(tap, *config.known_preprocessing.crop_size)
        row_shape = (channels, 1, 1) if config.pooling != "none" else (channels, height, width)
        targets.append(Target(contract, layout_for(config.store, row_shape=row_shape, dtype=config.dtype)))
    return targets
