"""The workspaces of a project: its own folder, and those of experiments that run now."""

from pathlib import Path


def workspaces_of(project: Path) -> list[Path]:
    """The project's own workspace, and those of experiments that run now, queued or below standalone/."""
    running = [each for folder in inside(project / ".dvc/tmp/exps") for each in (folder, *inside(folder))]
    return [project, *(folder for folder in running if (folder / "params.yaml").is_file())]


def inside(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none. Unlike glob, raises OSError if it can't be read."""
    return sorted(folder.iterdir()) if folder.is_dir() else []
