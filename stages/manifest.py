"""Corpus -> manifest: of a folder tree of your own, of public data sets; and a look at every clip."""

import argparse
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import yaml

from pipeline.corpora import (
    SEGMENTED,
    Corpus,
    build_manifest,
    charades_corpus,
    folder_corpus,
    group_by_pattern,
    hmdb51_corpus,
    kinetics_corpus,
    labels_corpus,
    merge_splits,
    mstcn_corpus,
    ssv2_corpus,
    ucf101_corpus,
)
from pipeline.errors import ConfigError
from pipeline.manifest import SPLITS, Clip, column_names
from stages import console
from stages.manifest_look import run_look
from stages.manifest_options import parse_options
from stages.manifest_probe import run_probe

log = logging.getLogger(__name__)

_MAX_LABELS_SHOWN = 30


def main() -> None:
    """Run the command that the arguments name."""
    options = parse_options(__doc__)
    if options.command == "probe":
        run_probe(options)
    elif options.command == "look":
        run_look(options)
    elif options.command == "folder":
        _build(options, _own_corpus(options), shares=options.split)
    else:
        _build(options, _official_corpus(options))


def _official_corpus(options: argparse.Namespace) -> Corpus:
    shares = {"val_share": options.val_share, "seed": options.seed}
    if options.command == "kinetics":
        return kinetics_corpus(options.folder, tables=options.csv, **shares)
    if options.command in ("charades", "ssv2"):
        build = charades_corpus if options.command == "charades" else ssv2_corpus
        return build(options.folder, lists=options.lists, **shares)
    if options.command in SEGMENTED:
        build_split = partial(mstcn_corpus, dataset=options.command, fps=options.fps)
    else:
        build_split = partial(hmdb51_corpus if options.command == "hmdb51" else ucf101_corpus)
    splits = dict.fromkeys(options.split)
    corpora = {n: build_split(options.folder, lists=options.lists, split=n, **shares) for n in splits}
    return merge_splits(corpora) if len(corpora) > 1 else corpora[options.split[0]]


def _own_corpus(options: argparse.Namespace) -> Corpus:
    group, labels = options.group, options.labels
    is_column = bool(group and labels) and group in column_names(labels)
    try:
        pattern = re.compile(group) if group and not is_column else None
    except re.error as error:
        raise ConfigError(f"--group {group}: no column of --labels, and no pattern: {error}.") from None
    if labels:
        corpus = labels_corpus(labels, options.folder, group_column=group if is_column else None)
    else:
        corpus = folder_corpus(options.folder)
    return replace(corpus, clips=tuple(group_by_pattern(corpus.clips, pattern))) if pattern else corpus


def _build(options: argparse.Namespace, corpus: Corpus, *, shares: Sequence[float] | None = None) -> None:
    built = build_manifest(
        options.out,
        corpus,
        root=options.folder,
        image_fps=options.image_fps,
        shares=shares,
        seed=options.seed,
        fresh=options.fresh,
    )
    _print_counts(built.clips)
    _print_found(corpus)
    if built.had_previous:
        print(f"\n{options.out} had {built.num_kept} of the clips: they keep their splits and other columns,")
        print(f"but not with --fresh. {len(built.clips) - built.num_kept} clips are new.")
    if built.num_assumed:
        log.info(
            "%d clips are images in sequence, taken as 1 image a second: extract.sampling {fps: 5} would use"
            " each of them 5 times. --image-fps gives their true rate.",
            built.num_assumed,
        )
    print(f"\n{options.out}: {len(built.clips)} clips. In params.yaml (and then `stages.manifest probe`):\n")
    settings = {"manifest": str(options.out), "root": str(options.folder.resolve())}
    print(yaml.safe_dump({"corpus": settings}, allow_unicode=True, width=math.inf), end="")


def _print_found(corpus: Corpus) -> None:
    """For official lists, how many of their clips are there, and their classes against the published ones."""
    found, missing = len(corpus.clips), len(corpus.missing)
    asked, published = corpus.num_classes, corpus.num_classes_published
    if asked is None:
        return
    print(f"\nThe lists name {found + missing} clips: {found} are there, {missing} are missing.")
    verdict = "as published" if asked == published else f"but {published} are published: are lists missing?"
    print(f"They have {asked} classes, {verdict}.")


def _print_counts(clips: Sequence[Clip]) -> None:
    """A line for each class, if there are few, and one for all."""
    labels = sorted({label for clip in clips for label in clip.labels})
    counts = {"all classes": Counter(clip.split for clip in clips)}
    if len(labels) <= _MAX_LABELS_SHOWN:
        counts = {label: Counter(c.split for c in clips if label in c.labels) for label in labels} | counts
    console.print_table([{"class": name, **{s: str(n[s]) for s in SPLITS}} for name, n in counts.items()])


if __name__ == "__main__":
    console.run(main)
