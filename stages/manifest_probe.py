"""`python -m stages.manifest probe`: a look at every clip of a manifest."""

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.corpora import measure_clips, write_measured
from pipeline.errors import ManifestError, few, listed
from pipeline.frames import ClipInfo
from pipeline.manifest import read_manifest
from stages.bars import ProgressBar
from stages.params import read_params
from stages.project.visible import corpus_root


def run_probe(options: argparse.Namespace) -> None:
    """Look at every clip, write `options.out`, print a summary. Raises ManifestError naming broken clips."""
    params = read_params()
    corpus, config = params.corpus, params.extract
    manifest = read_manifest(options.manifest or Path(corpus.manifest))
    root = options.root or corpus_root(corpus.root)
    rows = []
    broken = {}
    with ProgressBar(total=len(manifest), unit="clip", desc="probe") as bar:
        for row in measure_clips(
            manifest,
            root=root,
            sampling=config.sampling,
            limits=config.limits,
            preprocessing=config.preprocessing,
            num_threads=options.threads,
        ):
            rows.append(row)
            if row.problem:
                broken[row.clip_id] = row.problem
                bar.set_postfix_str(f"{len(broken)} broken", refresh=False)
            bar.update()
    if options.out:
        write_measured(options.out, rows)
    if found := [row.info for row in rows if row.info]:
        _print_summary(found)
    if broken:
        lines = listed((f"{name}: {problem}" for name, problem in broken.items()), at_most=1000)
        raise ManifestError(f"{len(broken)} of {len(manifest)} clips are broken:\n{lines}")


def _print_summary(found: Sequence[ClipInfo]) -> None:
    num_frames = [info.num_frames for info in found]
    sizes = Counter((info.width, info.height) for info in found).most_common()
    hours = sum(info.seconds for info in found) / 3600
    print(f"{len(found)} clips, {sum(num_frames)} frames, {hours:.2f} hours")
    print(f"frames a clip: {min(num_frames)} to {max(num_frames)}, median {statistics.median(num_frames):g}")
    print("frame sizes:", few(f"{width} x {height} ({count})" for (width, height), count in sizes))
