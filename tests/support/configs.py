"""Configs of small models."""

from pipeline.settings.training import AnyTrainConfig, TrainConfig


def live_config(**values: object) -> TrainConfig:
    """The config with those of these values that do something."""
    return TrainConfig.model_validate(AnyTrainConfig.model_validate(values).live("recurrent"))
