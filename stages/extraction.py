"""The process that stages/extract.py supervises: reads settings/extract.yaml, extracts, and reports."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pipeline.contract import REVISION
from pipeline.errors import ConfigError, InputChangedError, few
from pipeline.extraction import Extracted, Job, run_job
from pipeline.manifest import read_manifest
from pipeline.manifest.recorded import Contents
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.networks import is_own
from pipeline.settings.weights import WeightsConfig
from pipeline.store.view import publish_copy
from pipeline.system.devices import made_with
from pipeline.system.files import write_json
from pipeline.system.supervisor import Notes, interrupt_once, read_orders
from stages import console
from stages.bars import Bars
from stages.extract_job import read_job, show_progress
from stages.inputs import Inputs
from stages.places import FEATURES, SOURCES, weights_path
from stages.project.cache import put_into_cache, tracked_files
from stages.project.visible import imported_features

log = logging.getLogger(__name__)

REPORT = Path("reports/extract.json")


def main() -> None:
    """Extract as the settings say, under a supervisor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", type=int, required=True)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--retry-quarantined", action="store_true")
    arguments = parser.parse_args()
    interrupt_once()
    notes, orders = Notes(arguments.notes), read_orders(arguments.orders)
    inputs = Inputs("extract")
    if imported := inputs.values["extract"].get("imported"):
        publish_imported(imported)
        inputs.check()
        put_into_cache(FEATURES)
        return
    if inputs.values["revision"] != REVISION:
        raise InputChangedError(
            "The contract's revision was edited after its settings were written. Run again."
        )
    manifest, arch = Path(inputs.values["manifest"]), inputs.values["weights"]
    network = inputs.config("own", WeightsConfig) if is_own(arch) else WeightsConfig(arch=arch)
    inputs.watch(manifest, weights_path(arch), SOURCES)
    job = read_job(
        read_manifest(manifest),
        root=inputs.root,
        network=network,
        config=inputs.config("extract", ExtractConfig),
    )
    if job.own and job.own.version() != inputs.values["code"]:
        raise InputChangedError(f"The code of {arch} was edited after its settings were written. Run again.")
    _quieten_dask(job)
    is_first = not orders.num_restarts
    with Bars("clip") as bars:
        extracted = run_job(
            job,
            features=FEATURES,
            earlier_files=partial(tracked_files, FEATURES),
            retry=arguments.retry_quarantined and is_first,
            orders=orders,
            notes=notes,
            on_progress=partial(show_progress, bars),
        )
    write_report(extracted, num_restarts=orders.num_restarts, made_with=made_with(job.backbone.device))
    extracted.check_complete()
    inputs.check()
    if inputs.is_recorded:
        check_recorded(extracted.contents, job.recorded)
    put_into_cache(FEATURES)


def publish_imported(folder: str) -> None:
    """Publish a view of imported features in place of computed ones. Raises ConfigError without any."""
    path = imported_features(folder)
    if not path.is_dir():
        raise ConfigError(
            f"extract.imported: there are no features in {path}. `python -m stages.store import` makes them."
        )
    publish_copy(path, FEATURES)
    write_json(REPORT, {})
    log.info("%s: the imported features in %s.", FEATURES, path)


def check_recorded(contents: Contents, recorded: Contents) -> None:
    """Raise InputChangedError when sources had another content than the stage `settings` has recorded."""
    if moved := [source for source, content in contents.items() if recorded.get(source) != content]:
        raise InputChangedError(
            f"{few(moved)} changed after {SOURCES} was written. The features are kept: run again."
        )


def write_report(extracted: Extracted, *, num_restarts: int, made_with: Mapping[str, str]) -> None:
    """Write reports/extract.json. Figures of work are those of the last process.

    `made_with` has versions and device; it is left out where nothing was computed.
    """
    report = {
        "clips": extracted.num_clips,
        "clips_with_features": min(extracted.clips_by_tap.values(), default=None),
        "clips_computed": extracted.num_computed,
        "clips_left_out": len(extracted.left_out),
        "clips_damaged_kept": len(extracted.kept_damaged),
        "clips_failed": len(extracted.failed),
        "restarts": num_restarts,
        "frames_computed": extracted.num_frames,
        "bytes_computed": extracted.num_bytes,
        "seconds": round(extracted.seconds, 2),
        "setup_seconds": round(extracted.setup_seconds, 2),
        "frames_per_second": extracted.frames_per_second,
        "limited_by": extracted.limited_by,
        "lanes": extracted.lanes,
        "made_with": made_with if extracted.num_computed else None,
    }
    write_json(REPORT, report)


def _quieten_dask(job: Job) -> None:
    if job.machine.dask:
        import distributed  # noqa: F401 - its import sets the level, and takes a second

        logging.getLogger("distributed").setLevel(logging.ERROR)


def _exit_at_once() -> None:
    """Run the stage, and end the process without waiting for a decoder that hangs in foreign code."""
    status: object = 0
    try:
        console.run(main)
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _exit_at_once()
