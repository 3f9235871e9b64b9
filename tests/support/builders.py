"""`python -m stages.manifest` in a folder of its own, and the empty files that it needs."""

from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from stages.manifest import main
from stages.remedies import remedy_of


class Builder:
    """Runs the stage in `path`."""

    def __init__(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.path = path
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path, succeeds: bool = True) -> str:
        """What the stage prints, or with succeeds=False the message of its error."""
        self._monkeypatch.chdir(self.path)
        self._monkeypatch.setattr("sys.argv", ["manifest", *map(str, arguments)])
        try:
            main()
        except (PipelineError, SystemExit) as error:
            if succeeds:
                raise
            if isinstance(error, SystemExit):
                return self._capsys.readouterr().err
            return " ".join(filter(None, [str(error), remedy_of(error)]))
        assert succeeds
        return self._capsys.readouterr().out


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
