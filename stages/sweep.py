"""Sweeps: trains many models on features that are read together, and says which are as good as the best."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.errors import ConfigError, ManifestError
from pipeline.learn.comparison import evaluate
from pipeline.learn.sweeps import Candidate, contributions, halve, rank, val_metric, val_units
from pipeline.report.sweep_picture import draw_sweep
from pipeline.report.sweeps import SweepResult, Tried
from pipeline.settings.sweep import SweepConfig
from pipeline.system.files import write_atomically, write_json
from stages import console
from stages.bars import Bars
from stages.machine import read_machine
from stages.members import settings_of, sweep_members
from stages.project.experiments import Experiments, open_experiments
from stages.sweep_experiments import save_all, save_tested, take_over, take_over_baseline
from stages.sweep_plan import epoch_seconds, num_epochs, print_plan, settings_in_time
from stages.sweep_training import Trainings
from stages.yaml_files import checked, read_mapping

log = logging.getLogger(__name__)

GRID = "grid"  # in place of a file
REPORT = Path("reports/sweep")


def main() -> None:
    """Train the members that the arguments name, and compare them."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.sweep",
        description=__doc__,
        epilog="Reads params.yaml, machine.yaml, manifests and features; writes reports/sweep/: table.txt,"
        " table.json, table.csv, picture.png. A sweep that was stopped goes on when it is run again.",
    )
    parser.add_argument("sweep", metavar="FILE", help=f"a sweep, see docs/sweeps.md; or {GRID}: -S alone")
    parser.add_argument(
        "-S",
        dest="values",
        metavar="KEY=A,B",
        action="append",
        default=[],
        help="vary this key of params.yaml, all with all; several are allowed",
    )
    parser.add_argument(
        "--minutes", type=float, help="train as many members as so many minutes are enough for"
    )
    parser.add_argument("--plan", action="store_true", help="say what would be trained and how long it takes")
    parser.add_argument(
        "--no-experiments", action="store_true", help="make no experiments of DVC, and take none over"
    )
    arguments = parser.parse_args()
    path = Path("-S" if arguments.sweep == GRID else arguments.sweep)
    document = {} if arguments.sweep == GRID else read_mapping(path)
    sweep = _checked_sweep(document, arguments.values, minutes=arguments.minutes, path=path)
    members = {member.name: member for member in sweep_members(sweep, path=path)}
    trainings = Trainings(members, read_machine())
    with nullcontext() if arguments.no_experiments else open_experiments() as experiments:
        if experiments:
            take_over(trainings, experiments)
        if arguments.plan:
            print_plan(trainings, sweep)
        else:
            run_sweep(trainings, sweep, experiments)


def _checked_sweep(
    document: dict[str, Any], values: Sequence[str], *, minutes: float | None, path: Path
) -> SweepConfig:
    """The sweep of a file, with the grid of the flags `-S` and the limit of the flag `--minutes`."""
    grid = dict(document.get("grid") or {})
    for text in values:
        key, sign, listed = text.partition("=")
        try:
            grid[key] = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError:
            sign = ""
        if not sign:
            raise ConfigError(f"-S {text}: give a key and its values, such as -S train.hidden_size=64,128.")
    changes = {"grid": grid, **({} if minutes is None else {"minutes": minutes})}
    return checked({**document, **changes}, SweepConfig, path=path)


def run_sweep(trainings: Trainings, sweep: SweepConfig, experiments: Experiments | None) -> None:
    """Train the members, write the report, print its table and make the experiments.

    After Ctrl-C, all this is of the members that were trained to their end.
    """
    is_interrupted = False
    with Bars("epoch") as bars:
        trainings.on_epoch = partial(
            _show_epoch, bars, trainings, num_epochs=num_epochs(trainings.members.values(), sweep)
        )
        try:
            _train(trainings, sweep)
        except KeyboardInterrupt:
            is_interrupted = True
    if trainings.finished:
        result = compare(trainings)
        result = result if is_interrupted else tested(result, trainings, experiments)
        _write_report(result)
        print(result.text())
        if experiments:
            save_all(trainings, experiments)
    if is_interrupted:
        raise KeyboardInterrupt
    if not trainings.finished:
        counts = Counter(_notes(trainings).values())
        states = "; ".join(f"{number} members: {note}" for note, number in counts.items())
        raise ConfigError(f"No member was trained to its end ({states}). Run again to go on.")


def _train(trainings: Trainings, sweep: SweepConfig) -> None:
    """Train the members; with `minutes`, as many settings as there is time for.

    Settings that end early leave time for others: those follow.
    """
    end = time.monotonic() + 60 * (sweep.minutes or math.inf)
    left = settings_of(trainings.members.values())
    names = [name for name in trainings.members if not trainings.is_done(name)]
    seconds = epoch_seconds(trainings, names) if names and sweep.minutes else 0.0
    while left:
        num_possible = (end - time.monotonic()) / seconds if seconds else math.inf
        now = settings_in_time(trainings, left, sweep, num_possible=num_possible)
        if not now:
            log.warning(
                "No time is left for %d settings, at %.2g s for a member's epoch.", len(left), seconds
            )
            break
        halve(
            now,
            rungs=sweep.halving.rungs if sweep.halving else (),
            keep=sweep.halving.keep if sweep.halving else 1.0,
            train_until=trainings.train_until,
        )
        left = [setting for setting in left if setting not in now]


def _show_epoch(
    bars: Bars, trainings: Trainings, name: str, losses: Sequence[float], *, num_epochs: int
) -> None:
    num_done = sum(map(len, trainings.val_losses.values()))
    bars.note("sweep", f"{name}: val_loss={losses[-1]:.3f}")
    bars.show("sweep", num_done, max(num_done, num_epochs))


def compare(trainings: Trainings) -> SweepResult:
    """Rank the members that were trained to their end by their answers about the val clips."""
    finished = [trainings.members[name] for name in trainings.finished]
    monitor, evaluation = finished[0].config.resolved_monitor, finished[0].params.evaluate
    candidates, clips = [], set[frozenset[str]]()
    for member in finished:
        answers = trainings.answers(member.name)
        metric = val_metric(answers.predictions, task=answers.task, monitor=monitor)
        candidates.append(Candidate(member.name, member.setting, metric, answers.loss))
        clips.add(frozenset(clip.clip_id for clip in answers.predictions.clips))
    if len(clips) > 1:
        raise ManifestError("Members can't be compared: they have features of different val clips.")
    ranking = rank(
        candidates,
        units=val_units(answers.predictions),
        sign=answers.task.facts.monitors[monitor],
        num_resamples=evaluation.num_resamples,
        seed=evaluation.seed,
    )
    notes = _notes(trainings)
    return SweepResult(
        monitor=monitor,
        members=tuple(
            Tried(
                name,
                member.values,
                member.setting,
                val_losses=tuple(trainings.val_losses.get(name, ())),
                note=notes.get(name, ""),
            )
            for name, member in trainings.members.items()
        ),
        ranking=ranking,
        contributions=contributions(
            [member.values for member in finished], [ranking.values[member.name] for member in finished]
        ),
    )


def _notes(trainings: Trainings) -> dict[str, str]:
    """Why members were not trained to their end."""
    notes = {}
    for name in trainings.members.keys() - set(trainings.finished):
        trained = "stopped early" if name in trainings.val_losses else "not trained"
        notes[name] = trainings.failures.get(name, trained)
    return notes


def tested(result: SweepResult, trainings: Trainings, experiments: Experiments | None) -> SweepResult:
    """The result with the metrics of the winner and its baseline on the clips of the test split.

    The winner's experiment has them, too.
    """
    winner = result.ranking.winner
    member = trainings.members[winner]
    if experiments:
        take_over_baseline(trainings, experiments, winner)
    trainings.train_baselines([winner])
    answers = trainings.answers(winner, "baseline")
    metric = val_metric(answers.predictions, task=answers.task, monitor=result.monitor)
    baseline = metric(np.ones(result.ranking.units.num_clips))
    evaluation = evaluate(
        trainings.folder(winner) / "checkpoints",
        trainings.features(winner),
        member.manifest,
        config=member.params.evaluate,
        machine=trainings.machine,
    )
    if experiments:
        save_tested(trainings, experiments, winner, evaluation=evaluation)
    scores = {
        name: evaluation.scores[model].metrics[result.monitor]
        for name, model in (("winner", "recurrent"), ("baseline", "baseline"))
    }
    return replace(result, baseline=baseline, test=scores, split=member.params.evaluate.split)


def _write_report(result: SweepResult) -> None:
    write_atomically(REPORT / "table.txt", f"{result.text()}\n".encode())
    write_json(REPORT / "table.json", result.as_json())
    result.write_csv(REPORT / "table.csv")
    draw_sweep(REPORT / "picture.png", result)


if __name__ == "__main__":
    console.run(main)
