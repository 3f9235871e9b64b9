"""machine.yaml: what runs take of this machine. DVC never sees it, so changing it runs nothing again."""

import os
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError
from pipeline.settings.machine import Machine
from stages.yaml_files import checked, read_mapping

MACHINE = Path("machine.yaml")
_VARIABLE = "FRAMECACHE_MACHINE"


def read_machine() -> Machine:
    """The settings of machine.yaml in the project's folder, and over them those of FRAMECACHE_MACHINE.

    Queued experiments run in folders of their own, in which DVC_ROOT names the project's. Raises ConfigError
    for a wrong key or value.
    """
    project = Path(os.environ.get("DVC_ROOT", "."))
    path = project / MACHINE
    values = read_mapping(path) if path.exists() else {}
    checked(values, Machine, path=path)
    if given := os.environ.get(_VARIABLE):
        file = project / given
        values |= read_mapping(file) if file.is_file() else _inline(given)
        path = file if file.is_file() else Path(_VARIABLE)
    return checked(values, Machine, path=path)


def _inline(text: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{_VARIABLE} is {text!r}: neither a file nor YAML like '{{device: cpu, num_readers: 4}}'."
        )
    return values
