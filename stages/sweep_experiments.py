"""The members of a sweep as experiments of DVC."""

import json

from pipeline.learn.comparison import Evaluation
from pipeline.system.files import write_json
from stages.bars import Bars
from stages.evaluate import write_results
from stages.project.experiments import Experiments
from stages.sweep_training import Trainings

_RECORD = "experiment.json"  # in a member's folder: which experiment was made of it
_MODEL, _BASELINE = "train@recurrent", "train@baseline"


def take_over(trainings: Trainings, experiments: Experiments) -> None:
    """Take the members that DVC has of earlier runs, so that they are not trained again.

    Raises ExperimentError for members that can't be experiments.
    """
    for manifest in {member.manifest for member in trainings.members.values()}:
        experiments.check_manifest(manifest)
    for name, member in trainings.members.items():
        if not trainings.is_done(name):
            experiments.restore(member.document, trainings.folder(name), stages=[_MODEL])


def take_over_baseline(trainings: Trainings, experiments: Experiments, name: str) -> None:
    """Take the baseline of a member, if DVC has it of an earlier run."""
    if not trainings.is_done(name, "baseline"):
        experiments.restore(trainings.members[name].document, trainings.folder(name), stages=[_BASELINE])


def save_all(trainings: Trainings, experiments: Experiments) -> None:
    """Make an experiment of each member that was trained to its end, unless it has one."""
    with Bars("experiment") as bars:
        for number, name in enumerate(trainings.finished, start=1):
            if not _has_experiment(name, trainings, experiments):
                _save(name, trainings, experiments, stages=[_MODEL])
            bars.show("experiments", number, len(trainings.finished))


def save_tested(trainings: Trainings, experiments: Experiments, name: str, *, evaluation: Evaluation) -> None:
    """Make the experiment of a member that was evaluated, with its baseline."""
    write_results(evaluation, folder=trainings.folder(name))
    _save(name, trainings, experiments, stages=[_MODEL, _BASELINE, "evaluate"])


def _has_experiment(name: str, trainings: Trainings, experiments: Experiments) -> bool:
    """Whether the experiment of this name is the one that was made of this member."""
    path = trainings.folder(name) / _RECORD
    made = {"revision": experiments.revision(name), "params": trainings.members[name].document}
    return path.exists() and json.loads(path.read_bytes()) == made


def _save(name: str, trainings: Trainings, experiments: Experiments, *, stages: list[str]) -> None:
    params, folder = trainings.members[name].document, trainings.folder(name)
    revision = experiments.save(name, params, folder, stages=stages)
    write_json(folder / _RECORD, {"revision": revision, "params": params})
