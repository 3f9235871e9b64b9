"""Samples: which frames of which clips make each batch of an epoch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from pipeline.manifest import Clip

# Batches whose samples are sorted by length together: more is less padding, fewer is a better shuffle.
_BATCHES_PER_BUCKETING = 100


class Sample(NamedTuple):
    """Consecutive frames of a clip."""

    clip: Clip
    first_frame: int
    num_frames: int
    view: int = 0  # its number among the features that a loader has


def window_starts(num_frames: int, *, window: int, stride: int | None = None) -> list[int]:
    """First frames of a clip's windows: every `stride` (None: `window`), and one that ends with the clip.

    10 frames, window 4, stride 3: 0, 3, 6. 11 frames: 0, 3, 6, 7. A clip that is no longer than the window
    has one.
    """
    last = max(num_frames - window, 0)
    starts = list(range(0, last + 1, stride or window))
    return starts if starts[-1] == last else [*starts, last]


def cut_windows(clip: Clip, num_frames: int, *, window: int | None, stride: int | None) -> list[Sample]:
    """The windows of a clip; without `window`, the whole clip."""
    if window is None:
        return [Sample(clip, 0, num_frames)]
    starts = window_starts(num_frames, window=window, stride=stride)
    return [Sample(clip, first, min(window, num_frames)) for first in starts]


def crop_frames(sample: Sample, num_frames: int, *, seed: str) -> Sample:
    """A run of `num_frames` of the sample's frames, chosen by a hash of seed and clip alone."""
    num_spare = sample.num_frames - num_frames
    if num_spare <= 0:
        return sample
    chosen = _drawn(sample.clip, num_spare + 1, seed=seed)
    return sample._replace(first_frame=sample.first_frame + chosen, num_frames=num_frames)


def draw_view(sample: Sample, views: Sequence[int], *, seed: str) -> Sample:
    """The sample in one of these views, the same for all of its clip's: by a hash of seed and clip alone."""
    return sample._replace(view=views[_drawn(sample.clip, len(views), seed=f"{seed}/view")])


def _drawn(clip: Clip, num_choices: int, *, seed: str) -> int:
    """A number below `num_choices`, by a hash of seed and clip."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{clip.clip_id}".encode()) % num_choices


def draw_equally(
    samples: Sequence[Sample], labels: Mapping[str, Sequence[str]], *, rng: np.random.Generator
) -> list[Sample]:
    """As many samples, of each label equally many (one more or less): some again, some not at all.

    No sample of a label is drawn again before all others of it. `labels` are those of each clip, by its id.
    A sample of several labels is drawn for each of them; samples without any are those of one more label.
    """
    groups: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        for label in labels[sample.clip.clip_id] or ("",):
            groups[label].append(sample)
    drawn: list[Sample] = []
    for extra, group in zip(rng.permutation(len(groups)), groups.values(), strict=True):
        missing = (len(samples) + int(extra)) // len(groups)
        while missing > 0:
            drawn += [group[i] for i in rng.permutation(len(group))[:missing]]
            missing -= len(group)
    return drawn


def cut_batches(samples: list[Sample], batch_size: int) -> list[list[Sample]]:
    """Batches of samples in the order given; the last one may be smaller."""
    return [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]


def shuffle_batches(
    samples: Sequence[Sample], batch_size: int, *, rng: np.random.Generator, bucketing: bool
) -> list[list[Sample]]:
    """Batches of samples in random order; with `bucketing`, each of samples of similar length."""
    shuffled = [samples[i] for i in rng.permutation(len(samples))]
    if not bucketing:
        return cut_batches(shuffled, batch_size)
    batches = [
        batch
        for part in cut_batches(shuffled, batch_size * _BATCHES_PER_BUCKETING)
        for batch in cut_batches(sorted(part, key=lambda sample: sample.num_frames), batch_size)
    ]
    return [batches[i] for i in rng.permutation(len(batches))]
