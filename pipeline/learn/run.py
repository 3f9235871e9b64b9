"""A training run: features and a manifest in, a checkpoint a model out. A run that was killed goes on."""

import copy
import functools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.contract import CENTER
from pipeline.errors import ConfigError, NonFiniteError
from pipeline.learn.checkpoint import Checkpoint, save_checkpoint
from pipeline.learn.identity import input_digests, loaded_code, refuse_changes, state_path
from pipeline.learn.member import Fit, Member, Metrics
from pipeline.learn.metrics import json_numbers
from pipeline.learn.processes import OnBatch, OnEpoch, train_in_processes
from pipeline.learn.shared import Shared
from pipeline.learn.streaming import Features, open_views
from pipeline.learn.tasks import Predictions
from pipeline.learn.training import fit_many
from pipeline.settings.machine import Machine
from pipeline.settings.training import MODELS, MemberConfig, ModelName, TrainConfig
from pipeline.system.files import file_lock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a training run gave."""

    checkpoints: Path  # a folder a model, by its name
    fits: dict[str, Fit]  # by the same name: each epoch's metrics, and which epoch was the best

    def as_json(self) -> dict[str, dict[str, float | None]]:
        """For each model the metrics of its best epoch; None for what is not defined."""
        return {name: best_metrics(fit) for name, fit in self.fits.items()}


@dataclass(frozen=True)
class Outcome:
    """What `train_many` made of a member."""

    fit: Fit  # of the epochs so far
    is_done: bool  # it is trained to its end, or failed; False: `until` stopped it
    failure: NonFiniteError | None  # why it was not trained to its end
    predictions: Predictions | None  # of the best epoch, about the val clips; None: it failed
    checkpoint: Checkpoint  # of the best epoch, on the CPU


def train(
    features: str | Path,
    manifest: str | Path,
    *,
    config: TrainConfig = TrainConfig(),
    machine: Machine = Machine(),
    models: Sequence[ModelName] = MODELS,
    checkpoints: str | Path = "checkpoints",
    weights: str | Path = "weights",
    state: str | Path = ".framecache/training",
    confirm: Callable[[], None] = lambda: None,
    on_batch: OnBatch = lambda *_: None,
    on_epoch: OnEpoch = lambda *_: None,
) -> Trained:
    """Train the model that `config` describes, and beside it the baseline that it has to beat.

    After each epoch the state of a model's training goes to `state`. A training that was killed goes on after
    its last complete epoch, to the same numbers, when it is called again with the same features, manifest and
    settings of this model, and the code is the same.

    Args:
        features: the features of one tap, such as features/layer4. Those of `config.views` are beside them,
            such as features/layer4@flip, and those of `config.streams`: features/layer3, features-net/layer3.
        manifest: a CSV or Parquet manifest; its train split is trained on, its val split chooses the epoch.
        config: how to train. Its `tap`, if it is set, must be that of the features.
        machine: device, threads and memory.
        models: which of the two to train.
        checkpoints: the folder to write, with one folder a model.
        weights: with a tail, the weights file of the network that made the features, or a folder that has it.
        state: the folder for the state of unfinished trainings.
        confirm: called after a model's last epoch, before its checkpoint is written. If it raises an error,
            the state is kept, and the next call goes on from there.
        on_batch: called after each batch with the model's name, the number of batches done and of all.
        on_epoch: called after each epoch with the model's name and the epoch's metrics; on a resumed run also
            for the epochs before.

    Raises:
        MissingFeaturesError: when there are no features.
        ManifestError: when the manifest is wrong, or its clips lack what the task needs.
        ConfigError: for a config that does not fit the features, the task or the machine.
        WeightsError: when a tail's weights are missing, or are others.
        NonFiniteError: for features or a loss that are infinite or NaN.
        InputChangedError: when features or manifest changed meanwhile. The state is kept.
    """
    outcomes = train_many(
        features,
        [MemberConfig(name, config, Path(manifest), name, Path(checkpoints) / name) for name in models],
        machine=machine,
        weights=weights,
        state=state,
        confirm=confirm,
        on_batch=on_batch,
        on_epoch=on_epoch,
    )
    for outcome in outcomes.values():
        if outcome.failure:
            raise outcome.failure
    return Trained(Path(checkpoints), {name: outcome.fit for name, outcome in outcomes.items()})


def train_many(
    features: str | Path,
    members: Sequence[MemberConfig],
    *,
    until: int | None = None,
    machine: Machine = Machine(),
    weights: str | Path = "weights",
    state: str | Path = ".framecache/training",
    confirm: Callable[[], None] = lambda: None,
    on_batch: OnBatch = lambda *_: None,
    on_epoch: OnEpoch = lambda *_: None,
) -> dict[str, Outcome]:
    """Train many models on features that are read once, each to the numbers that it has alone.

    Members that differ only in settings that do nothing for them are trained once. After each epoch, the
    state of a member goes to `state`, as in `train`. It stays there until the member's checkpoint is written.
    With `machine.num_trainings` they are trained in so many processes, which read the features each.

    Args:
        features: as in `train`, like machine, weights and state.
        members: the models, each with a name of its own. Their manifests may differ, for example in splits.
        until: stop each member after so many epochs, a later call goes on; None: train it to its end.
        machine: see there.
        weights: see there.
        state: see there.
        confirm: called before each checkpoint is written, as in `train`.
        on_batch: called after each batch of a member with its name, the number of batches done and of all.
        on_epoch: called after each epoch of a member with its name and the epoch's metrics; on a resumed run
            also for the epochs before.

    Returns:
        The outcome of each member, by its name. A member whose loss is infinite or NaN fails alone.

    Raises:
        As `train` does, but for the loss of a member.
    """
    loaded_code()
    num_told: Counter[str] = Counter()  # epochs that processes have told of, by member
    if machine.num_trainings > 1 and len(members) > 1:
        num_told = train_in_processes(
            functools.partial(train_many, features, until=until, weights=weights, state=state),
            [each._replace(checkpoint=None) for each in members],
            machine=machine,
            on_batch=on_batch,
            on_epoch=on_epoch,
        )
    streams = _streams(members)
    digests = functools.partial(input_digests, features, streams=streams)
    inputs = {path: digests(path) for path in {each.manifest for each in members}}
    outcomes: dict[str, Outcome] = {}

    def tell_batch(member: Member) -> None:
        for each in asked[member.state_path]:
            on_batch(each.name, member.num_batches_done, member.num_batches)

    def tell_epoch(member: Member, metrics: Metrics) -> None:
        for each in asked[member.state_path]:
            if num_told[each.name]:
                num_told[each.name] -= 1
            else:
                on_epoch(each.name, metrics)

    def keep(member: Member, shared: Shared) -> None:
        """Note the outcomes of a training; at its end, write its checkpoints instead of its state."""
        same = asked[member.state_path]
        manifest = same[0].manifest
        ended = _outcomes(member, same, shared, inputs=inputs[manifest])
        for each in same if member.is_done and not member.failure else ():
            if each.checkpoint:
                confirm()
                refuse_changes(inputs[manifest], digests(manifest))
                save_checkpoint(each.checkpoint, ended[each.name].checkpoint)
                member.state_path.unlink(missing_ok=True)
        outcomes.update(ended)

    frame_views = [view for each in members for view in each.config.views]
    with open_views(Path(features), frame_views, streams) as views, ExitStack() as locks:
        asked = _by_state(members, views[CENTER], folder=Path(state), inputs=inputs)
        for path in sorted(asked):  # in this order, so that no two runs wait for each other
            locks.enter_context(file_lock(path.with_suffix(".lock"), on_wait=_say_waiting))
            for partial in path.parent.glob(f".{path.name}.partial-*"):  # of a run that was killed
                partial.unlink()
        shared = Shared(views, list(inputs), machine=machine, weights=Path(weights))
        for intra_op_threads, paths in _by_threads(asked).items():
            with _intra_op_threads(intra_op_threads) as num_threads:
                built = (shared.member(asked[path][0], state_path=path) for path in paths)
                for together in _that_fit(built, limit_bytes=shared.free_bytes() // 2):
                    fit_many(
                        together,
                        until=until,
                        num_threads=num_threads,
                        on_batch=tell_batch,
                        on_epoch=tell_epoch,
                    )
                    for member in together:
                        keep(member, shared)
    return {each.name: outcomes[each.name] for each in members}


def _streams(members: Sequence[MemberConfig]) -> tuple[str, ...]:
    """The taps that are read beside the features. Raises ConfigError when members differ in them."""
    found = {tuple(stream.tap for stream in each.config.streams) for each in members}
    if len(found) > 1:
        raise ConfigError("Models that are trained together read the same streams: train the others apart.")
    return found.pop() if found else ()


def _by_state(
    members: Iterable[MemberConfig], view: Features, *, folder: Path, inputs: Mapping[Path, dict[str, str]]
) -> dict[Path, list[MemberConfig]]:
    """The members by the file of their state: those of one file are trained once."""
    found: dict[Path, list[MemberConfig]] = defaultdict(list)
    for each in members:
        each = each._replace(config=_of_tap(each.config, view))
        found[state_path(folder, each.config, each.model, inputs[each.manifest])].append(each)
    return found


def _by_threads(asked: Mapping[Path, Sequence[MemberConfig]]) -> dict[int | None, list[Path]]:
    """The states of trainings whose operations take so many threads."""
    found: dict[int | None, list[Path]] = defaultdict(list)
    for path, (first, *_) in asked.items():
        found[first.config.intra_op_threads].append(path)
    return found


def _that_fit(members: Iterable[Member], *, limit_bytes: int) -> Iterator[list[Member]]:
    """The members in parts that take at most so much memory, or are one member."""
    part: list[Member] = []
    for member in members:
        if part and sum(other.size_bytes for other in [*part, member]) > limit_bytes:
            yield part
            part = []
        part.append(member)
    if part:
        yield part


def _outcomes(
    member: Member, same: Sequence[MemberConfig], shared: Shared, *, inputs: Mapping[str, str]
) -> dict[str, Outcome]:
    """The outcome of a training for each of the members that are trained by it."""
    fit = member.result()
    predictions = member.best_predictions()
    metrics = fit.history[fit.best_epoch]["val"] if fit.history else {}
    model = copy.deepcopy(member.model).cpu()  # others share its steps, and still answer on the device
    return {
        each.name: Outcome(
            fit,
            member.is_done,
            member.failure,
            predictions,
            Checkpoint(
                network=each.model,
                model=model,
                task=member.task.tuned(predictions),
                config=each.config,
                contracts=tuple(stream.contract for stream in shared.streams),
                map_shapes=tuple(shared.map_shapes),
                metrics=metrics,
                weights_source=shared.tail(each.config).source,
                inputs=dict(zip(("features", "manifest"), inputs.values(), strict=True)),
            ),
        )
        for each in same
    }


@contextmanager
def _intra_op_threads(number: int | None) -> Iterator[int]:
    """So many threads of torch's operations on a CPU, and as many as before afterwards; None: no change.

    Gives how many such operations can run at once in the threads that there were before.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield max(1, before // (number or before))
    finally:
        torch.set_num_threads(before)


def _of_tap(config: TrainConfig, view: Features) -> TrainConfig:
    """The config with the features' tap. Raises ConfigError when it names another."""
    tap = view.contract.tap
    if "tap" in config.model_fields_set and config.tap != tap:
        raise ConfigError(f"The config's tap is {config.tap!r}, but {view.path} has features of {tap!r}.")
    return config.model_copy(update={"tap": tap})


def _say_waiting(holder: str) -> None:
    log.info("Waiting for another run that trains the same: %s.", holder)


def best_metrics(result: Fit) -> dict[str, float | None]:
    """The metrics of a model's best epoch, such as val_loss; None for what is not defined."""
    best = {
        f"{split}_{name}": value
        for split, values in result.history[result.best_epoch].items()
        for name, value in json_numbers(values).items()
    }
    return {"num_epochs": len(result.history), "best_epoch": result.best_epoch, **best}
