"""What a manifest may contain: its schema, and every rule, checked column by column."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ManifestError, TornGroupError, count_of, few, listed
from pipeline.manifest.clips import REQUIRED, SPLITS, UNUSED, is_meta, is_split

NUMBER = r"\d+(?:\.\d*)?|\.\d+"
SIGNED_NUMBER = rf"[+-]?(?:{NUMBER})(?:[eE][+-]?\d+)?"
_INTERVAL = rf"^(?P<start>{NUMBER})-(?P<end>{NUMBER}):(?P<label>.*\S.*)$"
_QUESTION = r"[^|=]*[^|=\s][^|=]*=[^|=]*[^|=\s][^|=]*"
_CONTROL = "has a line break, a tab or another control character. Is a quote not closed?"
_MAX_REPORTED = 1000
_MAX_GROUPS = 5  # named in the message about groups


class Problems:
    """Collects what is wrong with a file, to be reported at once and in the order of its rows."""

    def __init__(self, path: Path, rows: Sequence[int] | np.ndarray = (), *, noun: str = "row") -> None:
        """`rows` (N,) are the places in the file of what is checked; `noun` says what they count."""
        self.rows = rows
        self.noun = noun
        self._path = path
        self._found: list[tuple[int, str]] = []  # row (0: the whole file), message
        self._kind = ManifestError

    def add(
        self,
        message: str,
        index: int | np.integer[Any] | None = None,
        *,
        kind: type[ManifestError] = ManifestError,
    ) -> None:
        """A problem of the clip at `index`, or of the whole file; the error will be of this `kind`."""
        self.add_at_row(message, 0 if index is None else int(self.rows[int(index)]))
        self._kind = kind if issubclass(kind, self._kind) else self._kind

    def add_at_row(self, message: str, row: int) -> None:
        """A problem at this place in the file."""
        self._found.append((row, message))

    def add_where(self, mask: pa.Array, name: str, values: pa.Array, rule: str) -> None:
        """A problem "<name> <value> <rule>" for each clip where `mask` (N,) is true; null is false."""
        for index in np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)):
            value = values[index].as_py()
            self.add(f"{name} {rule}" if value is None else f"{name} {value!r} {rule}", index)

    def raise_if_any(self) -> None:
        """Raise ManifestError (of the narrowest kind that was added) with all problems, each with its row."""
        if self._found:
            found = sorted(self._found)
            lines = (f"{self.noun} {row}: {message}" if row else message for row, message in found)
            heading = f"{self._path}: {len(found)} problem{'s' * (len(found) > 1)}"
            raise self._kind(f"{heading}\n{listed(lines, at_most=_MAX_REPORTED)}")


def check(table: pa.Table, problems: Problems) -> None:
    """Report whatever breaks a rule of manifests/README.md."""
    check_cells(table, problems, required=REQUIRED)
    _check_duplicates(table["clip_id"].combine_chunks(), problems)
    for name in ("split", *filter(is_split, table.column_names)):
        _check_splits(name, table[name].combine_chunks(), table["group"].combine_chunks(), problems)
        _check_test_is_not_val(name, table, problems)


def check_cells(table: pa.Table, problems: Problems, *, required: Sequence[str]) -> None:
    """Report every value that is wrong whatever the other rows are. No cell of `required` may be empty."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    own = filter(is_meta, table.column_names)

    def refuse(name: str, mask: pa.Array, rule: str) -> None:
        problems.add_where(mask, name, columns[name], rule)

    for name in required:
        refuse(name, columns[name].is_null(), "is empty.")
    for name in ("start_seconds", "end_seconds", "image_fps"):
        refuse(name, pc.is_inf(columns[name]), "is not finite.")
    start, end = pc.fill_null(columns["start_seconds"], 0.0), columns["end_seconds"]
    refuse("start_seconds", pc.less(start, 0.0), "is negative: times count from the first frame.")
    refuse("end_seconds", pc.less_equal(end, start), "is not after start_seconds.")
    refuse("image_fps", pc.less_equal(columns["image_fps"], 0.0), "is not above 0.")
    for name, pattern, rule in (
        *((name, r"[[:cntrl:]]", _CONTROL) for name in ("clip_id", "source", "group", "label", *own)),
        ("source", r"(^|\|)\s*(\||$)", "has an empty name. Images are joined by a single '|'."),
        ("caption", r"(^|\|)\s*(\||$)", "has an empty text. Captions are joined by a single '|'."),
        ("label", r"(^|\|)\s*(\||$)", "has an empty name. Several labels are joined by a single '|'."),
        (
            "source",
            r"(^|\|)/|(^|[|/])\.\.([|/]|$)",
            "is not below the corpus's root. Make it relative to that.",
        ),
    ):
        refuse(name, pc.match_substring_regex(columns[name], pattern), rule)
    is_questions = pc.match_substring_regex(columns["questions"], rf"^{_QUESTION}(?:\|{_QUESTION})*$")
    refuse("questions", pc.invert(is_questions), "is not like who?=Ann|when?=at noon.")
    _check_values(columns["value"], problems)
    _check_frame_labels(columns["frame_labels"], problems)


def _check_duplicates(clip_ids: pa.Array, problems: Problems) -> None:
    first = _first_with_same_value(clip_ids)
    for index in np.flatnonzero(first != np.arange(len(first))):
        clip_id, row = clip_ids[index].as_py(), problems.rows[first[index]]
        problems.add(f"clip_id {clip_id!r} is already in row {row}. Ids are unique.", index)


def _check_splits(name: str, splits: pa.Array, groups: pa.Array, problems: Problems) -> None:
    """Check the column `name`."""
    known = pc.is_in(splits, pa.array([*SPLITS, UNUSED]))
    unknown = pc.and_(splits.is_valid(), pc.invert(known))
    problems.add_where(unknown, name, splits, f"is unknown. Available: {', '.join(SPLITS)}.")
    found = set(splits.unique().to_pylist())
    for missing in (split for split in SPLITS if split not in found):
        problems.add(f"no clip has {name} {missing!r}. Each of {', '.join(SPLITS)} needs some.")
    _check_groups(pc.if_else(pc.equal(splits, UNUSED), None, splits), groups, problems)


def _check_test_is_not_val(name: str, table: pa.Table, problems: Problems) -> None:
    """One problem for all clips that the column `name` has in val and, with another id, in test.

    A file of imported features is no such source: it may hold many clips.
    """
    times = (pc.fill_null(table[key], 0.0).cast(pa.string()) for key in ("start_seconds", "end_seconds"))
    shown = pc.binary_join_element_wise(table["source"], *times, "\n")
    val, test = (pc.equal(table[name], split) for split in ("val", "test"))
    holds_features = pc.match_substring_regex(table["source"], r"\.(npz|pth?|pkl|pickle|h5|hdf5)$")
    shared = pc.and_(pc.and_not(test, holds_features), pc.is_in(shown, shown.filter(val).combine_chunks()))
    if clips := table["clip_id"].filter(shared).to_pylist():
        problems.add(
            f"{name} has {count_of(len(clips), 'clips')} of test also in val, with the same source and times:"
            f" {few(clips)}. The epoch is chosen on val, so test has to be other clips."
        )


def _check_groups(splits: pa.Array, groups: pa.Array, problems: Problems) -> None:
    """One problem for all groups that are in several splits, with the rows of each; a null is in none."""
    groups = pc.if_else(splits.is_valid(), groups, None)
    first = _first_with_same_value(groups)
    strays = pc.not_equal(splits, splits.take(pa.array(first)))
    torn = np.unique(first[np.flatnonzero(pc.fill_null(strays, False).to_numpy(zero_copy_only=False))])
    if not len(torn):
        return
    lines = []
    for leader in torn[:_MAX_GROUPS]:
        rows = defaultdict(list)
        for index in np.flatnonzero(first == leader).tolist():
            rows[splits[index].as_py()].append(int(problems.rows[index]))
        known = (split for split in SPLITS if split in rows)
        places = (f"{split} ({_places(rows[split], noun=problems.noun)})" for split in known)
        lines.append(f"group {groups[int(leader)].as_py()!r} is in {' and '.join(places)}")
    more = f"; and {len(torn) - _MAX_GROUPS} more groups" if len(torn) > _MAX_GROUPS else ""
    problems.add(
        f"{'; '.join(lines)}{more}. A group stays in one split: give all its rows the same, or another"
        " group.",
        kind=TornGroupError,
    )


def _places(rows: Sequence[int], *, noun: str) -> str:
    return f"{noun}{'s' * (len(rows) > 1)} {few(rows)}"


def _check_values(texts: pa.Array, problems: Problems) -> None:
    numbers = rf"^{SIGNED_NUMBER}(?:\|{SIGNED_NUMBER})*$"
    known = pc.fill_null(pc.match_substring_regex(texts, numbers), True)
    problems.add_where(pc.invert(known), "value", texts, "is not a number, or several like 0.5|1.2.")
    values = pc.split_pattern(pc.if_else(known, texts, None), "|")
    clips = pc.list_parent_indices(values).to_numpy()  # (M,) the clip of each value
    infinite = pc.is_inf(values.flatten().cast(pa.float64())).to_numpy(zero_copy_only=False)
    for index in np.unique(clips[infinite]):
        problems.add(f"value {texts[index].as_py()!r} is not finite.", index)


def _check_frame_labels(texts: pa.Array, problems: Problems) -> None:
    clips, start, end = _intervals(texts)
    for faulty, rule in (
        (np.isnan(start), "is not like 0.0-0.4:left|0.4-1.0:up."),
        (end <= start, "has an empty interval."),
        (_follows(clips, np.diff(start) < 0), "is not in order of time: sort it by the starts."),
    ):
        for index in np.unique(clips[faulty]):
            problems.add(f"frame_labels {texts[index].as_py()!r} {rule}", index)


def has_several(texts: pa.Array, *, per_frame: bool) -> np.ndarray:
    """Whether each cell (N,) of `label` has several labels; of `frame_labels`, several at one time."""
    if not per_frame:
        found: np.ndarray = pc.fill_null(pc.match_substring(texts, "|"), False).to_numpy(zero_copy_only=False)
        return found
    clips, start, end = _intervals(texts)
    overlapping = clips[_follows(clips, start[1:] < end[:-1])]
    return np.isin(np.arange(len(texts)), overlapping)


def _intervals(texts: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The clip, start and end (M,) of each interval of frame_labels; NaN where it is malformed."""
    intervals = pc.split_pattern(texts, "|")
    parts = pc.extract_regex(intervals.flatten(), _INTERVAL)
    start, end = (
        pc.struct_field(parts, name).cast(pa.float64()).to_numpy(zero_copy_only=False)
        for name in ("start", "end")
    )
    return pc.list_parent_indices(intervals).to_numpy(), start, end


def _follows(clips: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(M,) where `mask` (M - 1,) of each interval and the next one is true, and both are of one clip."""
    return np.append((np.diff(clips) == 0) & mask, False)[: len(clips)]


def _first_with_same_value(values: pa.Array) -> np.ndarray:
    """For each value (N,) the first index that has the same; a null is only like itself."""
    codes = pc.fill_null(values.dictionary_encode().indices, -1).to_numpy()
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.where(codes < 0, np.arange(len(codes)), first[inverse])
