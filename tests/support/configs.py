"""Settings of an extraction, from keywords of both kinds."""

from collections.abc import Mapping

from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine


def settings_of(fields: Mapping[str, object]) -> tuple[ExtractConfig, Machine]:
    """Those of ExtractConfig and those of Machine."""
    own = {name: value for name, value in fields.items() if name not in Machine.model_fields}
    machine = {name: value for name, value in fields.items() if name in Machine.model_fields}
    return ExtractConfig.model_validate(own), Machine.model_validate(machine)
