"""One experiment's time, part by part; and sweeps against as many runs of `dvc exp run`, end to end."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Report, Row, arguments, seconds_of
from tests.support.media import write_video
from tests.support.project import Project

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    args = arguments(__doc__, against="also the runs of another checkout of this project")
    report = Report("experiments", args.quick)
    num_clips, side = (60, 32) if args.quick else (480, 64)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name).absolute()
        videos = make_videos(folder / "videos", num_clips=num_clips, side=side)
        project = make_project(REPOSITORY, folder / "project", videos=videos, side=side)
        report.add("One experiment", parts(project))
        others = {}
        if args.against:
            others[str(args.against)] = make_project(args.against, folder / "other", videos=videos, side=side)
        report.add("Sweeps against `dvc exp run` of each member", sweeps(project, others, args.quick))
    report.write(args.json)


def make_videos(folder: Path, *, num_clips: int, side: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(num_clips):
        write_video(folder / f"clip{number}.mp4", num_frames=16, size=(side, side), first_index=number % 200)
    return folder


def make_project(code: Path, path: Path, *, videos: Path, side: int) -> Project:
    """A project with the code of a checkout, in which everything is up to date."""
    project = Project(path)
    for name in ("pipeline", "stages"):
        shutil.copytree(code / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore", "dvc.yaml", "params.yaml"):
        shutil.copy(code / name, path / name)
    (path / "manifests").mkdir()
    run(project, "git", "init", "--quiet", "--initial-branch", "main")
    run(project, "git", "config", "user.email", "bench@example.com")
    run(project, "git", "config", "user.name", "Bench")
    run(project, "dvc", "init", "--quiet")
    shutil.copytree(
        code / ".dvc", path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"), dirs_exist_ok=True
    )
    (path / ".dvc/config.local").unlink(missing_ok=True)
    ignored = path / ".gitignore"
    ignored.write_text(f"{ignored.read_text()}/videos\n")
    shutil.copytree(videos, project.videos)
    project.write_manifest(sorted((each.stem for each in videos.iterdir()), key=lambda name: int(name[4:])))
    project.set(
        {
            "corpus.manifest": "manifests/mine.csv",
            "corpus.root": str(project.videos),
            "weights.arch": "resnet18",
            "weights.source": "random:0",
            "extract.preprocessing": {"resize": side, "crop": side},
            "extract.taps": ["layer3"],
            "train.tap": "layer3",
            "train.patience": None,
        }
    )
    commit(project)
    run(project, "dvc", "repro", "--quiet")
    commit(project)
    return project


def commit(project: Project) -> None:
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", "state")


def run(project: Project, *command: str, **environment: str) -> str:
    """A command with the real Python: `Project.run` has one that has imported everything already."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    others = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    done = subprocess.run(
        command,
        cwd=project.path,
        env={**others, "PATH": path, "DVC_NO_ANALYTICS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_experiment(project: Project, values: Mapping[str, Any]) -> float:
    """Seconds of `dvc exp run` with these values of section `train`."""
    flags = [word for key, value in values.items() for word in ("-S", f"train.{key}={value}")]
    return seconds_of(lambda: run(project, "dvc", "exp", "run", "--quiet", *flags))


def parts(project: Project) -> list[Row]:
    """Of an experiment that changes the model alone. Its stages run again without DVC, which has the rest."""
    seconds = run_experiment(project, {"hidden_size": 120})
    rows = []
    for stage in (["settings"], ["train", "recurrent"], ["evaluate"]):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.parts", *stage]
        output = run(project, *command, PYTHONPATH=str(REPOSITORY), DVC_STAGE=stage[0])
        spent = json.loads(output.splitlines()[-1])
        spent["Python's start and end"] = time.perf_counter() - begun - sum(spent.values())
        rows += [{"stage": " ".join(stage), "part": part, "seconds": value} for part, value in spent.items()]
    rows.append({"stage": "", "part": "DVC", "seconds": seconds - sum(row["seconds"] for row in rows)})
    rows.append({"stage": "", "part": "all", "seconds": seconds})
    run(project, "git", "restore", ".")
    return [{**row, "share": row["seconds"] / seconds} for row in rows]


def sweeps(project: Project, others: Mapping[str, Project], quick: bool) -> list[Row]:
    sizes = [32, 64] if quick else [32, 64, 96, 128, 160]
    rates = [0.001, 0.002, 0.003] if quick else [0.0005, 0.001, 0.002, 0.003]
    halving = {"rungs": [2, 6], "keep": 1 / 3}
    kinds: dict[str, dict[str, Any]] = {
        "one order": {"grid": {"hidden_size": sizes, "learning_rate": rates}},
        "three seeds": {"grid": {"hidden_size": [size + 1 for size in sizes], "seed": [0, 1, 2]}},
        "one order, halving": {
            "grid": {"hidden_size": [size + 2 for size in sizes], "learning_rate": rates},
            "halving": halving,
        },
    }
    rows = []
    for kind, sweep in kinds.items():
        names, values = list(sweep["grid"]), list(sweep["grid"].values())
        num_members = len(values[0]) * len(values[1])
        document = {**sweep, "grid": {f"train.{name}": sweep["grid"][name] for name in names}}
        (project.path / "sweep.yaml").write_text(yaml.safe_dump(document))
        seconds = seconds_of(lambda: run(project, sys.executable, "-m", "stages.sweep", "sweep.yaml"))
        (project.path / "sweep.yaml").unlink()
        row: Row = {"members": num_members, "with": kind, "seconds": seconds}
        for name, other in {"dvc exp run": project, **others}.items():
            each = experiment_seconds(other, names, values, num_runs=1 if quick else 3)
            row |= {f"{name}, seconds each": each, f"as fast as {name}": num_members * each / seconds}
        rows.append(row)
    return rows


def experiment_seconds(
    project: Project, names: Sequence[str], values: Sequence[Sequence[Any]], *, num_runs: int
) -> float:
    """Mean of the runs of some members, of slightly larger nets that DVC does not know from the sweep."""
    times = []
    for number in range(num_runs):
        size, other = (several[number % len(several)] for several in values)
        times.append(run_experiment(project, dict(zip(names, [size + 5, other], strict=True))))
        run(project, "git", "restore", ".")
    return statistics.fmean(times)


if __name__ == "__main__":
    main()
