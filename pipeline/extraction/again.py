"""Features that exist, computed once more: on this machine, from the sources, as their contracts say."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.contract import CENTER, FeatureContract
from pipeline.extraction.job import make_job
from pipeline.extraction.progress import OnProgress, ignore_progress
from pipeline.extraction.run import run_job
from pipeline.manifest import Manifest
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.system.own_code import OwnCode


@dataclass(frozen=True)
class Again:
    """Features of one contract that were computed once more."""

    contract: FeatureContract  # as this version of the code and these weights fulfil it
    features: Path  # the folder of the tap and view
    left_out: Mapping[str, str]  # clips without features, and why


def compute_again(
    contracts: Sequence[FeatureContract],
    manifest: Manifest,
    *,
    root: Path,
    weights: Path,
    config: ExtractConfig,
    machine: Machine,
    folder: Path,
    own: OwnCode | None = None,
    on_progress: OnProgress = ignore_progress,
) -> list[Again]:
    """Compute the clips of a manifest as each contract says, with a journal of their own, below `folder`.

    All contracts are of the network in the file `weights`; `own` is the user's code that builds it. `config`
    says what contracts leave open, such as limits and damaged clips. The result has a contract's features at
    its place in `contracts`; the contract there differs from the one asked for where another revision or
    other weights are at hand.

    Raises as `make_job` and `run_job` do.
    """
    groups: dict[str, list[FeatureContract]] = defaultdict(list)
    for contract in contracts:
        groups[_config_of(contract, config).model_dump_json()].append(contract)
    found = {}
    for number, members in enumerate(groups.values()):
        job = make_job(
            manifest,
            root=root,
            weights=weights,
            config=_config_of(members[0], config).model_copy(update=_targets(members)),
            machine=machine.model_copy(update={"dask": None}),
            journal=folder / f"journal{number}",
            own=own,
        )
        features = folder / f"features{number}"
        extracted = run_job(job, features=features, on_progress=on_progress)
        extracted.check_complete()
        made = {target.contract.name: target.contract for target in job.targets}
        for contract in members:
            name = contract.name
            found[contract] = Again(made[name], features / name, extracted.left_out)
    return [found[contract] for contract in contracts]


def _config_of(contract: FeatureContract, config: ExtractConfig) -> ExtractConfig:
    """The settings that make the contract's features, but for tap and view."""
    names = ExtractConfig.model_fields.keys() & FeatureContract.model_fields.keys()
    values = {name: getattr(contract, name) for name in names}
    return config.model_copy(update={**values, "max_failed_share": 1.0, "imported": None})


def _targets(contracts: Sequence[FeatureContract]) -> dict[str, object]:
    """Settings for the taps, layouts and views of these contracts; the centre is always there."""
    layouts = {contract.tap: contract.layout for contract in contracts if contract.layout}
    taps = dict.fromkeys(contract.tap for contract in contracts)
    views = dict.fromkeys([CENTER, *(contract.view for contract in contracts)])
    return {"taps": tuple(taps), "layouts": layouts, "views": tuple(views)}
