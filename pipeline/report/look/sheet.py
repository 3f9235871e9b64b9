"""A contact sheet: a corpus on one HTML page, which needs no network and no other file."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.manifest import SPLITS, Clip
from pipeline.report.html import number, templates
from pipeline.report.look.distributions import of_clips, of_seen
from pipeline.report.look.findings import Finding, is_torn
from pipeline.report.look.survey import Cell, Seen, cell_of, classes_of
from pipeline.system.files import make_folder, write_atomically

# What a page shows at most.
_MAX_STRIP_BYTES = 9_000_000  # of the pictures by class, before base64
_LEAST_SHOWN, _MAX_SHOWN = 8, 96  # clips of a class and split: the more cells, the fewer clips
_MAX_GROUPS, _MAX_MEMBERS = 50, 4
_MAX_CASES = 200


def write_sheet(
    path: Path,
    clips: Sequence[Clip],
    seen: Sequence[Seen],
    *,
    findings: Sequence[Finding],
    groups: Sequence[Sequence[Seen]],
    manifest: str,
    root: str,
) -> None:
    """Write the page about all `clips`, of which some were `seen`; `groups` of them look alike."""
    cells: dict[str, dict[str, list[Seen]]] = {}
    for each in sorted(
        _with_room(seen), key=lambda each: (cell_of(each.clip)[0], list(SPLITS).index(each.clip.split))
    ):
        name, split = cell_of(each.clip)
        cells.setdefault(name, {}).setdefault(split, []).append(each)
    page = (
        templates()
        .get_template("look.html")
        .render(
            title="A look at the corpus",
            manifest=manifest,
            root=root,
            verdict=verdict(findings),
            findings=findings,
            max_cases=_MAX_CASES,
            groups=groups[:_MAX_GROUPS],
            num_groups=len(groups),
            max_members=_MAX_MEMBERS,
            is_torn=lambda group: is_torn(each.clip for each in group),
            splits=list(SPLITS),
            split_sizes=Counter(clip.split for clip in clips),
            of_clips=of_clips(clips),
            of_seen=of_seen(seen),
            cells=cells,
            cell_sizes=Counter(map(cell_of, clips)),
            num_unseen_classes=len({cell_of(clip)[0] for clip in clips}) - len(cells),
            num_clips=len(clips),
            num_shown=sum(len(shown) for in_splits in cells.values() for shown in in_splits.values()),
            num_read=sum(each.info is not None for each in seen),
            facts=_facts,
            targets=_targets,
        )
    )
    make_folder(path.parent)
    write_atomically(path, page.encode(errors="backslashreplace"))


def verdict(findings: Sequence[Finding]) -> str:
    """Whether something leaks, in a sentence."""
    if any(finding.kind == "leak" for finding in findings):
        return "Something leaks: clips of different splits show the same."
    return "No leak was found: no source is in several splits, and no clips of several splits look alike."


def _with_room(seen: Sequence[Seen]) -> Iterator[Seen]:
    """The clips that are shown: the first of each cell, then the second of each, as long as there is room."""
    num_before = Counter[Cell]()
    ranks = defaultdict(list)
    for each in seen:
        if each.strip:
            cell = cell_of(each.clip)
            ranks[num_before[cell]].append(each)
            num_before[cell] += 1
    room = _MAX_STRIP_BYTES
    for rank in range(max(_LEAST_SHOWN, _MAX_SHOWN // max(1, len(num_before)))):
        for each in ranks[rank]:
            room -= len(each.strip)
            if room < 0:
                return
            yield each


def _facts(each: Seen) -> str:
    """`1.4 s, 10 frames a second, 64 × 64`; "" for a clip that could not be read."""
    seconds, rate, info = each.duration_seconds, each.frames_per_second, each.info
    moving = f"{seconds:.3g} s, {rate:.3g} frames a second, " if seconds and rate else ""
    return f"{moving}{info.width} × {info.height}" if info else ""


def _targets(clip: Clip) -> list[str]:
    """What a clip without a label is about, in a few lines."""
    if clip.label:
        return []
    values = " ".join(map(number, clip.values))
    questions = [f"{each.question} {each.answer}" for each in clip.questions[:3]]
    return [text for text in (", ".join(classes_of(clip)), *clip.captions[:2], values, *questions) if text]
