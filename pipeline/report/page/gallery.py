"""The clips that a page shows, in groups, each with its pictures and with what every run answered."""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.contract import FeatureContract, Sampling
from pipeline.errors import error_text
from pipeline.manifest import Clip
from pipeline.report.page.answers import NUM_EXTREME, Answers, ClipAnswers
from pipeline.report.page.looks import Look, overlay
from pipeline.report.page.pictures import Picture, read_picture, strip_of
from pipeline.settings.extract import Limits
from pipeline.system.children import Crash, in_child

log = logging.getLogger(__name__)

_NUM_VIDEOS = 2 * NUM_EXTREME
_STRIP_BYTES, _VIDEO_BYTES = 4_000_000, 6_000_000  # of all strips and videos; a page takes a third more
_LOOK_HEIGHT = 48  # pixels of a frame below a word
_MAX_BARS = 400  # of the weights over time
_MAX_WORDS = 20  # of an answer that have a picture
_MAX_SECONDS = 120  # after which the clips that are left get no pictures

_TITLES = {"worst": "Highest loss", "between": "Between", "best": "Lowest loss"}

Looks = Callable[[Sequence[Clip]], Mapping[str, Look]]


@dataclass(frozen=True)
class Glance:
    """Where the model looked for one word, or for the whole answer."""

    word: str
    over_time: Sequence[float]  # of each frame, 1 is the highest
    strip: bytes = b""  # WebP: the frames of the clip's strip, coloured; b"": it sees no places
    size: tuple[int, int] = (0, 0)

    @property
    def bars(self) -> list[float]:
        """The highest weight in each part of the clip; a part is a frame, or several of many."""
        num_bars = min(_MAX_BARS, len(self.over_time))
        return [max(part) for part in np.array_split(self.over_time, num_bars)]


@dataclass(frozen=True)
class Shown:
    """A clip on the page."""

    number: int  # its place on the page, from 1
    clip_id: str
    answers: Mapping[str, ClipAnswers]  # by run
    picture: Picture
    glances: Sequence[Glance] = ()

    @property
    def first(self) -> ClipAnswers:
        """The answers of the first run."""
        return next(iter(self.answers.values()))


@dataclass(frozen=True)
class Group:
    """Clips under one heading."""

    title: str
    clips: Sequence[Shown]


@dataclass(frozen=True)
class Gallery:
    """All clips that are shown."""

    groups: Sequence[Group]
    num_clips: int  # that were answered
    faults: Sequence[str] = ()  # what could not be shown, and why

    @property
    def clips(self) -> Iterator[Shown]:
        """Those of all groups."""
        return (clip for group in self.groups for clip in group.clips)

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each clip that is shown, by its id."""
        return {clip.clip_id: clip.number for clip in self.clips}


def make_gallery(
    answers: Mapping[str, Answers],
    *,
    clips: Mapping[str, Clip],
    at_most: int,
    root: Path | None,
    contract: FeatureContract,
    limits: Limits,
    looks: Looks | None = None,
    faults: Sequence[str] = (),
) -> Gallery:
    """Choose clips, and read their pictures. `answers` are by run; `clips` of the manifest by id."""
    first, *others = answers.values()
    titles = _differing(answers, at_most=at_most) if others else _titles(first.choose(at_most=at_most))
    rows = {name: each.of(titles) for name, each in answers.items()}
    with_video = [*titles][:NUM_EXTREME] + [*titles][NUM_EXTREME:][-NUM_EXTREME:]
    pictures = _pictures([clips.get(clip) for clip in titles], titles, with_video, root, contract, limits)
    faults, seen = [*faults], dict[str, Look]()
    if looks:
        try:
            seen |= looks([clips[clip] for clip in with_video if clip in clips])
        except Exception as error:  # of a model, while all else can be shown
            faults.append(f"Where the model looked is not known: {error_text(error)}")
            log.error("%s", faults[-1])
    groups: dict[str, list[Shown]] = {}
    for number, (clip, title) in enumerate(titles.items(), start=1):
        glances = _glances(seen[clip], pictures[clip], contract) if clip in seen else ()
        each = {name: found[clip] for name, found in rows.items()}
        groups.setdefault(title, []).append(Shown(number, clip, each, pictures[clip], tuple(glances)))
    return Gallery(
        [Group(title, found) for title, found in groups.items()], num_clips=len(first.losses), faults=faults
    )


def _titles(places: Mapping[str, str]) -> dict[str, str]:
    return {clip: _TITLES[place] for clip, place in places.items()}


def _differing(answers: Mapping[str, Answers], *, at_most: int) -> dict[str, str]:
    """Clips that some runs get right and others wrong, each with the title of its group; else by loss."""
    shared = [
        clip
        for clip in next(iter(answers.values())).losses
        if all(clip in a.losses for a in answers.values())
    ]
    rows = {name: each.of(shared) for name, each in answers.items()}
    titles = {}
    for clip in shared:
        right = [name for name in answers if rows[name][clip].is_right]
        wrong = [name for name in answers if rows[name][clip].is_right is False]
        if right and wrong:
            titles[clip] = f"Right: {', '.join(right)}. Wrong: {', '.join(wrong)}"

    def spread(clip: str) -> float:
        losses = [each.losses[clip] for each in answers.values()]
        return max(losses) - min(losses)

    order = sorted(titles, key=lambda clip: (titles[clip], -spread(clip)))
    rest = sorted((clip for clip in shared if clip not in titles), key=lambda clip: -spread(clip))
    chosen = order[:at_most]
    return {clip: titles[clip] for clip in chosen} | dict.fromkeys(
        rest[: min(NUM_EXTREME, at_most - len(chosen))], "Most different losses"
    )


def _pictures(
    clips: Sequence[Clip | None],
    names: Iterable[str],
    with_video: Sequence[str],
    root: Path | None,
    contract: FeatureContract,
    limits: Limits,
) -> dict[str, Picture]:
    """A picture of each clip, by its name; those with a video first, while there is time."""
    found = dict(zip(names, clips, strict=True))
    if root is None:
        return dict.fromkeys(found, Picture(reason="the corpus is not known"))
    order = [*with_video, *(name for name in found if name not in set(with_video))]
    videos = set(with_video)
    read = functools.partial(
        _read_in_time,
        root=root,
        sampling=contract.sampling,
        limits=limits,
        strip_bytes=_STRIP_BYTES // max(1, len(found)),
        until=time.monotonic() + _MAX_SECONDS,
    )
    asked = [(found[name], _VIDEO_BYTES // _NUM_VIDEOS if name in videos else 0) for name in order]
    pictures = in_child(read, asked, num_threads=len(os.sched_getaffinity(0)))
    return {
        name: Picture(reason=f"its decoder was ended {picture.ending}")
        if isinstance(picture, Crash)
        else picture
        for name, picture in zip(order, pictures, strict=True)
    }


def _read_in_time(
    asked: tuple[Clip | None, int],
    *,
    root: Path,
    sampling: Sampling,
    limits: Limits,
    strip_bytes: int,
    until: float,
) -> Picture:
    """The picture of a clip, with a video of at most so many bytes; none after the time `until`."""
    clip, video_bytes = asked
    if clip is None:
        return Picture(reason="the manifest no longer has it")
    if time.monotonic() > until:  # the clock of all processes
        return Picture(reason=f"reading the clips before it took {_MAX_SECONDS} seconds")
    return read_picture(
        clip, root=root, sampling=sampling, limits=limits, strip_bytes=strip_bytes, video_bytes=video_bytes
    )


def _glances(look: Look, picture: Picture, contract: FeatureContract) -> Iterator[Glance]:
    """For each word; with coloured frames where the model sees places and the clip can be read."""
    places = look.frames_at(picture.frame_seconds)
    for number, word in enumerate(look.words[:_MAX_WORDS]):
        strip, size = b"", (0, 0)
        if look.has_places and picture.frames:
            maps = look.maps[number]
            frames = [
                overlay(frame, maps[i], highest=float(maps.max()), preprocessing=contract.preprocessing)
                for frame, i in zip(picture.frames, places, strict=True)
            ]
            strip, size = strip_of(frames, height=_LOOK_HEIGHT)
        yield Glance(word, look.over_time(number), strip, size)
