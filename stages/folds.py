"""Folds: trains and tests the model of params.yaml, and its baseline, on several splits of the corpus."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.corpora import draw_folds, listed_folds
from pipeline.errors import ConfigError
from pipeline.learn.answers import Tally, tally
from pipeline.learn.comparison import Evaluation, evaluate
from pipeline.learn.folds import FoldUnits, score_folds
from pipeline.manifest import UNUSED, Clip, clips_digest, is_split, read_manifest, write_manifest
from pipeline.report.folds import FoldsResult
from pipeline.report.tables import write_predictions
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.tasks import TASKS
from pipeline.system.files import write_atomically, write_json
from stages import console
from stages.bars import Bars
from stages.machine import read_machine
from stages.members import SweepMember, fold_member
from stages.params import Params, read_params
from stages.places import training_folder
from stages.project.runs import ANSWERS
from stages.project.visible import visible_manifest
from stages.sweep_training import Trainings

CHECKPOINTS = Path("checkpoints/folds")
_NUMBER = 5  # of folds, where neither the command nor the manifest says it


def main() -> None:
    """Train and test on all folds; write what the epilog says."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.folds",
        description=__doc__,
        epilog="Reads params.yaml, machine.yaml, the manifest and features; writes metrics/folds.json (the"
        " numbers of `dvc exp show`), reports/folds.json, reports/folds.txt and checkpoints/folds/<fold>/:"
        " each fold's models, and their answers about its test clips (predictions.parquet)."
        " Each fold chooses its epoch on its own val split. What is trained already is not trained again.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--number", type=int, help=f"draw so many folds, by groups (default: {_NUMBER})")
    which.add_argument(
        "--columns",
        nargs="+",
        metavar="SPLIT",
        help="columns of the manifest (default: its columns split<N>, if it has some)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="of each fold (default: train.seed alone)")
    arguments = parser.parse_args()
    params = read_params()
    folds = _folds(params, number=arguments.number, columns=arguments.columns)
    seeds = list(dict.fromkeys(arguments.seeds or [params.train.seed]))
    members = {
        (fold, seed): fold_member(path, fold=fold, seed=seed)
        for fold, path in folds.items()
        for seed in seeds
    }
    result = _run(members, params)
    write_json(Path("reports/folds.json"), result.as_json())
    write_atomically(Path("reports/folds.txt"), f"{result.text()}\n".encode())
    write_json(Path("metrics/folds.json"), result.headline())
    print(result.text())


def _folds(params: Params, *, number: int | None, columns: Sequence[str] | None) -> dict[str, Path]:
    """The manifest of each fold, by the fold's name."""
    path = visible_manifest(params.corpus.manifest)
    manifest = read_manifest(path)
    columns = columns or ([] if number else list(filter(is_split, manifest.table.column_names)))
    if columns:
        folds = dict(zip(columns, listed_folds(list(manifest), columns), strict=True))
    else:
        drawn = draw_folds([clip for clip in manifest if clip.split != UNUSED], number or _NUMBER)
        folds = {str(place): fold for place, fold in enumerate(drawn, start=1)}
    if len(folds) < 2:
        raise ConfigError(f"One fold ({', '.join(folds)}) is no more than `dvc repro`: give several.")
    folder = training_folder() / "folds" / clips_digest(path)
    return {name: _written(folder / f"{name}-of-{len(folds)}.parquet", fold) for name, fold in folds.items()}


def _written(path: Path, clips: Sequence[Clip]) -> Path:
    write_manifest(path, clips)
    return path


def _run(members: dict[tuple[str, int], SweepMember], params: Params) -> FoldsResult:
    """Train all members and their baselines, and measure them on their test clips."""
    names = {member.name: key for key, member in members.items()}
    trainings = Trainings({member.name: member for member in members.values()}, read_machine())
    num_epochs = params.train.epochs * len(members)
    with Bars("epoch") as bars:

        def show_epoch(name: str, losses: Sequence[float]) -> None:
            bars.note("folds", f"{name}: val_loss={losses[-1]:.3f}")
            bars.show("folds", sum(map(len, trainings.val_losses.values())), num_epochs)

        trainings.on_epoch = show_epoch
        trainings.train_until(list(names), None)
        if trainings.failures:
            name, reason = next(iter(trainings.failures.items()))
            raise ConfigError(f"{name}: {reason}. Folds are compared when all are trained.")
        trainings.train_baselines(list(names))
    config = params.evaluate.model_copy(update={"split": "test"})
    tallies: dict[str, dict[str, list[Tally]]] = {}  # by model and fold: of each seed
    groups: dict[str, str | None] = {}  # of test clips
    seeds = list(dict.fromkeys(seed for _, seed in members))
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)  # of other folds
    for name, (fold, seed) in names.items():
        evaluation = _measured(trainings, name, config)
        groups |= {clip.clip_id: clip.group for clip in evaluation.answers.clips}
        for model in evaluation.scores:
            counted = tally(evaluation.predictions, model=model)
            tallies.setdefault(model, {}).setdefault(fold, []).append(counted)
        target = fold if len(seeds) == 1 else f"{fold},seed={seed}"
        shutil.copytree(trainings.folder(name) / "checkpoints", CHECKPOINTS / target)
        write_predictions(CHECKPOINTS / target / ANSWERS, evaluation.predictions)
    facts = TASKS[params.train.task]
    units = FoldUnits.of([found[0].clip_ids for found in tallies["recurrent"].values()], groups=groups)
    return FoldsResult(
        facts.headline,
        facts.monitors[facts.headline],
        folds={fold: len(found[0].clip_ids) for fold, found in tallies["recurrent"].items()},
        units=units.units,
        seeds=seeds,
        scores={
            model: score_folds(
                list(folds.values()), units=units, num_resamples=config.num_resamples, seed=config.seed
            )
            for model, folds in tallies.items()
        },
        labels=evaluation.labels,
    )


def _measured(trainings: Trainings, name: str, config: EvaluateConfig) -> Evaluation:
    return evaluate(
        trainings.folder(name) / "checkpoints",
        trainings.features(name),
        trainings.members[name].manifest,
        config=config,
        machine=trainings.machine,
    )


if __name__ == "__main__":
    console.run(main)
