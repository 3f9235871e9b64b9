"""What a stage reads: its own settings file, never params.yaml, and files that must not change meanwhile."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pipeline.errors import InputChangedError, few
from pipeline.manifest import clips_digest
from pipeline.settings.training import TrainConfig
from pipeline.system.code import code_digest, module_digests
from pipeline.system.files import file_digest
from stages.places import CORPUS, SETTINGS
from stages.project.visible import corpus_root
from stages.yaml_files import checked, read_mapping

Config = TypeVar("Config", bound=BaseModel)


class Inputs:
    """The settings, code and files that a stage began with.

    People change parameters, code and the manifest for their next experiment while one runs. DVC records
    what a stage depends on after the stage has ended: without `check`, it would record what was not used.
    """

    def __init__(self, stage: str, *, module: str | None = None) -> None:
        """Read settings/<stage>.yaml; outside of DVC it is written first.

        `module` is that of a stage whose settings have a digest of its code; all its imports are done. Raises
        InputChangedError when its code has another digest now, ConfigError when there are no settings.
        """
        self.is_recorded = "DVC_STAGE" in os.environ  # DVC notes down what this stage has used
        if not self.is_recorded:
            _settings_stage().settle()
        path = SETTINGS / f"{stage}.yaml"
        self._files = {path: _digest(path)}
        self._path, self._module = path, module
        self.values: dict[str, Any] = read_mapping(path)
        if module:
            self._imported, self._code = set(sys.modules), module_digests(module)
            if code_digest(module) != self.values["code"]:
                raise InputChangedError(
                    f"The code of {module} was edited after {path} was written. Run again."
                )

    @property
    def root(self) -> Path:
        """The folder of the corpus, from a file that no stage depends on: moving a corpus changes nothing."""
        return corpus_root(read_mapping(CORPUS)["root"])

    def config(self, section: str, model: type[Config]) -> Config:
        """A section of the settings. Raises ConfigError for settings of another version."""
        return checked(self.values[section], model, path=self._path)

    def check_clips(self) -> None:
        """Raise InputChangedError when the manifest says other things of its clips than for the settings."""
        manifest = self.values["manifest"]
        if clips_digest(manifest) != self.values["clips"]:
            raise InputChangedError(f"{manifest} was edited after {self._path} was written. Run again.")

    def watch(self, *paths: Path) -> None:
        """From now on, `check` compares these files, too."""
        self._files |= {path: _digest(path) for path in paths}

    def check(self) -> None:
        """Raise InputChangedError when a file has changed, or code that was imported after `__init__`."""
        moved = [str(path) for path, digest in self._files.items() if _digest(path) != digest]
        if self._module:
            late = sys.modules.keys() - self._imported
            now = module_digests(self._module)
            moved += [name for name, digest in self._code.items() if name in late and now.get(name) != digest]
        if moved:
            raise InputChangedError(
                f"{few(moved)} changed while this stage ran. Its work is kept: undo the change to get it, or"
                " run again with what is there now."
            )

    def check_experiment(self, trained: TrainConfig) -> None:
        """Raise InputChangedError in an experiment whose params.yaml does not ask for what was used.

        When an experiment has ended, DVC takes params.yaml as it is then for the experiment's own.
        """
        if "DVC_EXP_NAME" in os.environ and (edited := _settings_stage().edited_settings(trained)):
            raise InputChangedError(
                "params.yaml was edited while this experiment ran, so the experiment would be shown with"
                f" settings that it did not use ({few(edited)}). Its models are kept: undo the edit and run"
                " again. With --queue or --temp, experiments have a params.yaml of their own."
            )


def _settings_stage() -> Any:
    # No import statement: an edit of what other stages can be asked for is no edit of this one.
    return importlib.import_module("stages.settings")


def _digest(path: Path) -> bytes | None:
    """The digest of a file's content; None where there is no file."""
    return file_digest(path) if path.is_file() else None
