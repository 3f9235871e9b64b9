"""A small framecache project in a folder of its own, driven by the real DVC as a user drives it."""

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from unittest import mock

import yaml

from pipeline.system.supervisor import Notes, Orders
from tests.support.in_process import run_main
from tests.support.media import write_video
from tests.support.warm_python import warm_python

REPOSITORY = Path(__file__).parents[2]
LABELS = ("left", "right")


@dataclass(frozen=True)
class Project:
    """A clone of this repository's code, with a corpus of tiny videos that git tracks."""

    path: Path

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def environment(self) -> dict[str, str]:
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "GIT_", "FRAMECACHE_"))
        }
        environment["PATH"] = f"{warm_python()}:{Path(sys.executable).parent}:{environment['PATH']}"
        environment["DVC_NO_ANALYTICS"] = "1"  # `dvc init` starts a process for them
        return environment

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a command here; its output, stdout and stderr as they come."""
        with TemporaryFile("w+") as output:  # a pipe stays open as long as a worker of DVC's queue has it
            done = subprocess.run(
                command,
                cwd=self.path,
                env={**self.environment, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            output.seek(0)
            text = output.read()
        assert (done.returncode == 0) == check, text
        return text

    def dvc(self, *arguments: str, check: bool = True, **environment: str) -> str:
        return self.run("dvc", *arguments, check=check, **environment)

    def extract_here(self, *options: str, check: bool = True) -> str:
        """Run the work of stage extract in this process, unsupervised; its output.

        For steps of a test of which only the plan and the features are looked at.
        """
        from stages import extraction  # imports torch

        supervision = {
            "interrupt_once": lambda: None,
            "Notes": lambda _: Notes(),
            "read_orders": lambda _: Orders(),
        }
        with mock.patch.multiple(extraction, **supervision):
            arguments = ("--notes=0", "--orders=0", *options)
            status, stdout, stderr = run_main(extraction.main, self.path, *arguments)
        assert (status == 0) == check, stdout + stderr
        return stdout + stderr

    def set(self, changes: Mapping[str, Any]) -> None:
        """Change parameters, given as {"section.key": value}."""
        path = self.path / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for name, value in changes.items():
            *parents, key = name.split(".")
            section = params
            for parent in parents:
                section = section.setdefault(parent, {})
            section[key] = value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def set_machine(self, **settings: Any) -> None:
        """Write machine.yaml, which git ignores."""
        (self.path / "machine.yaml").write_text(yaml.safe_dump(settings))

    def add_video(self, name: str, *, num_frames: int = 5, first_index: int = 0) -> None:
        """Write videos/<name>.mp4, or replace it: another `first_index` gives other frames."""
        write_video(
            self.videos / f"{name}.mp4", num_frames=num_frames, size=(32, 32), first_index=first_index
        )

    def write_manifest(self, names: list[str]) -> None:
        """A manifest of these clips: of four, two train, one validates and one tests."""
        splits = ("train", "train", "val", "test")
        with (self.path / "manifests/mine.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["clip_id", "source", "split", "label"])
            for number, name in enumerate(names):
                label = LABELS[(number // 4 + number) % 2]
                writer.writerow([name, f"{name}.mp4", splits[number % 4], label])

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")

    def copy(self, path: Path) -> "Project":
        """A copy whose hardlinks are kept."""
        subprocess.run(["cp", "-a", str(self.path), str(path)], check=True)
        return Project(path)

    def clone(self, path: Path) -> "Project":
        self.run("git", "clone", "--quiet", str(self.path), str(path))
        return Project(path)


NAMES = [f"clip{number}" for number in range(8)]


def make_project(folder: Path) -> Project:
    """The project with a corpus of eight clips; nothing has run yet."""
    project = Project(folder / "project")
    project.videos.mkdir(parents=True)
    for name in ("pipeline", "stages"):
        shutil.copytree(REPOSITORY / name, project.path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore", "dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, project.path / name)
    (project.path / "manifests").mkdir()
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.run("git", "config", "user.email", "test@example.com")
    project.run("git", "config", "user.name", "Test")
    project.dvc("init", "--quiet")
    shutil.copy(REPOSITORY / ".dvc/config", project.path / ".dvc/config")
    shutil.copytree(REPOSITORY / ".dvc/plots-page", project.path / ".dvc/plots-page")
    for number, name in enumerate(NAMES):
        project.add_video(name, num_frames=4 + number % 3, first_index=10 * number)
    project.write_manifest(NAMES)
    project.set(
        {
            "corpus.manifest": "manifests/mine.csv",
            "corpus.root": "videos",
            "weights.arch": "resnet18",
            "weights.source": "random:0",
            "extract.preprocessing": {"resize": 32, "crop": 32},
            "extract.taps": ["layer4"],
            "train.tap": "layer4",
            "train.epochs": 2,
            "evaluate.num_resamples": 50,
        }
    )
    project.set_machine(batch_size=8)
    project.commit()
    return project


def plans(output: str) -> list[str]:
    """What each plan in a stage's output says, its lines joined: `1 new, 320 unchanged`."""
    found = re.findall(r"Plan:\n((?:  .+\n)+)", output)
    return [", ".join(line.strip() for line in lines.splitlines()) for lines in found]
