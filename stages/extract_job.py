"""What stage extract is asked for: parameters, clips, network, journal."""

import shutil
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.backbone import Backbone, Weights
from pipeline.backbone.weights import load_weights
from pipeline.contract import FeatureContract
from pipeline.errors import ConfigError
from pipeline.extraction import ExtractConfig, Plan, Target, plan, source_paths
from pipeline.manifest import Clip, check_sources, read_manifest, source_faults
from pipeline.manifest.sources import Fault
from pipeline.store import DigestCache, Journal
from pipeline.system.devices import resolve_device
from stages.dvc_cache import share_journal
from stages.git_history import run_git
from stages.params import CorpusConfig, journal_path, load_section

FEATURES = Path("features")


@dataclass(frozen=True)
class Job:
    """What params.yaml asks for, and where."""

    config: ExtractConfig
    clips: tuple[Clip, ...]
    root: Path
    faults: Mapping[str, Fault]  # of sources that can't be read
    backbone: Backbone
    targets: tuple[Target, ...]
    journal: Journal
    digests: DigestCache

    @property
    def forward_digest(self) -> str:
        return self.targets[0].contract.forward_digest()

    def plan(
        self,
        *,
        copies: Mapping[str, AbstractSet[bytes]] | None = None,
        retried: AbstractSet[bytes] = frozenset(),
    ) -> Plan:
        return plan(
            self.clips,
            root=self.root,
            targets=self.targets,
            journal=self.journal,
            digests=self.digests,
            damaged=self.config.damaged,
            min_frames=self.config.min_frames,
            copies=copies,
            retried=retried,
            faults=self.faults,
        )


def read_job(*, only_plan: bool = False) -> Job:
    """What the parameters ask for; errors that the user can mend come here.

    To plan, no journal is made and the network is not compiled.
    """
    corpus = load_section("corpus", CorpusConfig)
    config = load_section("extract", ExtractConfig)
    root = visible_root(corpus.root)
    manifest = read_manifest(visible_manifest(corpus.manifest))
    faults = source_faults(manifest, root=root)
    if all(faults.keys() & set(clip.sources) for clip in manifest):
        check_sources(manifest, root=root)  # nothing is there: it is the root that is wrong
    weights = load_weights(weights_path())
    if config.dask and not only_plan:  # Dask's workers have networks of their own; this one knows shapes
        backbone = Backbone(weights, taps=config.taps, device=torch.device("cpu"))
    else:
        backbone = Backbone(
            weights,
            taps=config.taps,
            device=resolve_device(config.device),
            precision=config.precision,
            backend="eager" if only_plan else config.backend,
        )
    targets = make_targets(config, weights, backbone)
    if not only_plan:
        share_journal(journal_path())
    journal = Journal(journal_path(), create=not only_plan)
    return Job(
        config, tuple(manifest), root, faults, backbone, tuple(targets), journal, journal.digest_cache()
    )


def read_sources(job: Job, *, again: bool = False) -> None:
    """Read the sources that are new or changed, or `again` all, for the plan, with a progress bar."""
    if again:
        job.digests.forget(source_paths(job.clips, root=job.root))
    sizes = job.digests.unknown(source_paths(job.clips, root=job.root))
    total = sum(sizes.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="read sources", delay=1) as bar:
        for path in job.digests.learn(sizes):
            bar.update(sizes[path])


def make_targets(config: ExtractConfig, weights: Weights, backbone: Backbone) -> list[Target]:
    """What is to be stored for each tap of the parameters."""
    targets = []
    for tap in config.taps:
        contract = FeatureContract(
            sampling=config.sampling,
            preprocessing=config.preprocessing,
            mean=weights.mean,
            std=weights.std,
            arch=weights.arch,
            weights_sha256=weights.sha256,
            precision=config.precision,
            backend=config.backend,
            tap=tap,
            pooling=config.pooling,
            dtype=config.dtype,
        )
        channels, height, width = backbone.map_shape(tap, *config.preprocessing.crop_size)
        row_shape = (channels, 1, 1) if config.pooling != "none" else (channels, height, width)
        targets.append(Target(contract, config.store.layout(row_shape=row_shape, dtype=config.dtype)))
    return targets


def weights_path() -> Path:
    """weights/<arch>.safetensors of the parameters."""
    from pipeline.backbone.weights import WeightsConfig

    return Path("weights") / f"{load_section('weights', WeightsConfig).arch}.safetensors"


def visible_root(root: str) -> Path:
    """The corpus root, refused if queued experiments, which run in another folder, can't see it."""
    path = Path(root)
    if not path.is_dir():
        raise ConfigError(f"corpus.root: no folder {root!r} in {Path.cwd()}.")
    if path.is_absolute() or _git_tracks(path) or _dvc_tracks(path):
        return path
    raise ConfigError(
        f"corpus.root: {root!r} is relative and tracked by neither git nor DVC, so queued experiments"
        f" would not find it. Give the absolute path, {str(path.resolve())!r}, or track it: `dvc add {root}`."
    )


def visible_manifest(manifest: str) -> Path:
    """The manifest, refused if queued experiments, which run in another folder, can't see it."""
    path = Path(manifest)
    if path.is_absolute() or not path.is_file() or _git_tracks(path) or _dvc_tracks(path):
        return path  # one that is missing has its own message
    raise ConfigError(
        f"corpus.manifest: {manifest!r} is tracked by neither git nor DVC, so queued experiments would not"
        f" find it. Track it: `git add {manifest}`, with -f if git ignores it."
    )


def _git_tracks(path: Path) -> bool:
    """Whether git has this file, or files of this folder. Without git there are no experiments: then True."""
    if shutil.which("git") is None:
        return True
    listing = run_git(Path(), "ls-files", "--", str(path), check=False)
    if listing.returncode and b"not a git repository" not in listing.stderr:
        raise ConfigError(f"git does not say whether it tracks {path}: {listing.stderr.decode().strip()}")
    return bool(listing.stdout) or listing.returncode != 0


def _dvc_tracks(path: Path) -> bool:
    from dvc.exceptions import DvcException, NotDvcRepoError, OutputNotFoundError
    from dvc.repo import Repo  # takes a second to import

    try:
        with Repo() as repo:
            return bool(repo.find_outs_by_path(str(path), strict=False))
    except (OutputNotFoundError, NotDvcRepoError):
        return False
    except DvcException as error:
        raise ConfigError(f"DVC does not say whether it tracks {path}: {error}") from error


def size_text(num_bytes: float) -> str:
    """E.g. `39.9 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
