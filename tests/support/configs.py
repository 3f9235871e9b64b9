"""Configs of small models."""

from typing import Self

from pydantic import model_validator

from pipeline.settings.training import TrainConfig


class AnyTrainConfig(TrainConfig):
    """A TrainConfig that takes every value of a setting that does nothing."""

    @model_validator(mode="after")
    def _all_settings_count(self) -> Self:
        return self


def live_config(**values: object) -> TrainConfig:
    """The config with those of these values that do something."""
    return TrainConfig.model_validate(AnyTrainConfig.model_validate(values).live("recurrent"))
