"""`python -m stages.manifest look`: a contact sheet of a corpus, and what leaks between its splits."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import LeakError, ManifestError, listed
from pipeline.manifest import UNUSED, read_manifest
from pipeline.report.look import Finding, choose, find, group_alike, survey_clips, verdict, write_sheet
from stages.bars import ProgressBar
from stages.params import read_params
from stages.project.visible import corpus_root

_MAX_CASES = 10  # of a finding, on the terminal


def run_look(options: argparse.Namespace) -> None:
    """Write the page `options.out`, print what was found. Raises ManifestError for leaks and damage."""
    params = read_params()
    path = options.manifest or Path(params.corpus.manifest)
    root = options.root or corpus_root(params.corpus.root)
    clips = [clip for clip in read_manifest(path) if clip.split != UNUSED]
    chosen = choose(clips, at_most=options.clips)
    seen = []
    with ProgressBar(total=len(chosen), unit="clip", desc="look") as bar:
        for each in survey_clips(
            chosen, root=root, limits=params.extract.limits, num_threads=options.threads
        ):
            seen.append(each)
            bar.update()
    groups = group_alike(seen)
    findings = find(clips, seen, groups)
    write_sheet(
        options.out, clips, seen, findings=findings, groups=groups, manifest=str(path), root=str(root)
    )
    if options.json:
        print(
            json.dumps(
                {
                    "manifest": str(path),
                    "page": str(options.out),
                    "num_clips": len(clips),
                    "num_opened": len(seen),
                    "findings": [asdict(finding) for finding in findings],
                },
                indent=2,
            )
        )
    else:
        notes = [finding for finding in findings if finding.kind == "note"]
        print(f"{len(clips)} clips, {len(seen)} opened. {verdict(findings)}")
        print(*map(_as_text, notes), f"The page: {options.out.resolve().as_uri()}", sep="\n")
    _raise_for([finding for finding in findings if finding.kind != "note"])


def _raise_for(findings: Sequence[Finding]) -> None:
    if findings:
        is_leak = any(finding.kind == "leak" for finding in findings)
        raise (LeakError if is_leak else ManifestError)("\n".join(map(_as_text, findings)))


def _as_text(finding: Finding) -> str:
    """The sentence, and below it the first cases."""
    return "\n".join(filter(None, [finding.text, listed(finding.cases, at_most=_MAX_CASES)]))
