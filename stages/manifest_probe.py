"""`python -m stages.manifest probe`: a look at every clip of a manifest."""

import argparse
import csv
import io
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from pipeline.contract import Preprocessing, Sampling
from pipeline.errors import DecodeError, ManifestError, error_text
from pipeline.frames import ClipInfo, Limits, clip_range, probe
from pipeline.manifest import Clip, read_manifest
from pipeline.manifest.sources import fault_of
from pipeline.system.files import write_atomically
from pipeline.system.parallel import in_threads
from stages.params import CorpusConfig, load_section


class ProbeConfig(BaseModel):
    """What of the section `extract` decides how many frames a clip has, and whether it can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    preprocessing: Preprocessing = Preprocessing()


def run_probe(options: argparse.Namespace) -> None:
    """Look at every clip, print a summary, write `options.out`. Raises ManifestError naming broken clips."""
    corpus = load_section("corpus", CorpusConfig)
    config = load_section("extract", ProbeConfig)
    root = options.root or Path(corpus.root)
    manifest = read_manifest(options.manifest or Path(corpus.manifest))

    def look(clip: Clip) -> ClipInfo | str:
        for source in clip.sources:
            if fault := fault_of(root, source):
                return f"{root / source} {fault.reason}. {fault.remedy}"
        try:
            return probe(**clip_range(clip, root=root), **dict(config))
        except (DecodeError, OSError) as error:
            return error_text(error)

    found: dict[str, ClipInfo] = {}
    broken: dict[str, str] = {}
    with tqdm(total=len(manifest), unit="clip", desc="probe") as bar:
        for clip, info in in_threads(lambda clip: (clip, look(clip)), manifest, num_threads=options.threads):
            if isinstance(info, ClipInfo):
                found[clip.clip_id] = info
            else:
                broken[clip.clip_id] = info
                bar.set_postfix_str(f"{len(broken)} broken", refresh=False)
            bar.update()
    if options.out:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["clip_id", *(field.name for field in fields(ClipInfo)), "problem"])
        writer.writerows([clip_id, *astuple(info), ""] for clip_id, info in found.items())
        writer.writerows([clip_id, *[""] * len(fields(ClipInfo)), broken[clip_id]] for clip_id in broken)
        write_atomically(options.out, text.getvalue().encode(errors="backslashreplace"))
    if found:
        _print_summary(list(found.values()))
    if broken:
        lines = [f"{clip_id}: {problem}" for clip_id, problem in broken.items()]
        raise ManifestError("\n  ".join([f"{len(broken)} of {len(manifest)} clips are broken:", *lines]))


def _print_summary(found: Sequence[ClipInfo]) -> None:
    num_frames = [info.num_frames for info in found]
    sizes = Counter((info.width, info.height) for info in found).most_common()
    hours = sum(info.seconds for info in found) / 3600
    print(f"{len(found)} clips, {sum(num_frames)} frames, {hours:.2f} hours")
    print(f"frames a clip: {min(num_frames)} to {max(num_frames)}, median {statistics.median(num_frames):g}")
    shown = ", ".join(f"{width} x {height} ({count})" for (width, height), count in sizes[:8])
    print(f"frame sizes: {shown}{', ...' if len(sizes) > 8 else ''}")
