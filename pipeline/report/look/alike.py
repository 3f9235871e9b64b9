"""Which clips look alike: copies in another size or encoding, or cut a little earlier or later.

A clip's look is two small grey pictures: the mean of a few of its frames, and how much each place changes.
Both hardly depend on which frames were taken, and the second tells clips of one fixed camera apart. As in a
difference hash, neighbouring pixels are subtracted, so that light and dark halves alone make nothing alike.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

_SIZE = 16  # of the pictures in pixels
LOOK_LENGTH = 2 * _SIZE * (_SIZE - 1)  # D: numbers of a picture

# Between a picture's extremes, in grey levels of 255. With less, a clip is of one colour, or stands still.
_LEAST_CONTRAST, _LEAST_MOTION = 8, 4

# Cosines between the looks of two clips, at least. The means of two of the 1,000 clips of the embedded corpus
# reach 0.76; those of a clip and its copy, 0.9 even without a sixth of it. Of stills, only the mean tells.
_SAME_MEAN, _SAME_MOTION, _SAME_STILL = 0.85, 0.6, 0.95

# Sorted by _NUM_ORDERS keys of 16 signs of random projections, a clip is compared with its next _NUM_NEXT.
# Among 20,000 random looks, all of 200 pairs are found so that are hardly above the limits.
_NUM_ORDERS, _KEY_BITS, _NUM_NEXT = 64, 16, 8


def look_of(frames: Sequence[np.ndarray]) -> np.ndarray:
    """The look (2, D) float32 of a clip's frames, each (H, W, 3) uint8: of its mean and of its motion.

    Each has the length 1; or 0, where the mean is of one colour or everything stands still.
    """
    grey = np.stack(
        [
            np.asarray(Image.fromarray(frame).convert("L").resize((_SIZE, _SIZE), Image.Resampling.BOX))
            for frame in frames
        ]
    ).astype(np.float32)  # (T, 16, 16)
    mean, motion = grey.mean(axis=0), grey.std(axis=0)
    look = np.zeros((2, LOOK_LENGTH), np.float32)
    if np.ptp(mean) >= _LEAST_CONTRAST:
        look[0] = _differences(mean)
    if np.ptp(motion) >= _LEAST_MOTION:
        look[1] = _differences(motion)
    return look


def alike_pairs(looks: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) int64 of clips that look alike, i < j and in order, of looks (N, 2, D) float32.

    The work grows with N log N. Of many clips that look alike, some pairs are found, which connect them all.
    """
    rng = np.random.default_rng(0)
    flat = looks.reshape(len(looks), -1)  # (N, 2 D)
    stands_still = np.asarray(~looks[:, 1].any(axis=1))  # (N,)
    found = [np.empty((0, 2), np.int64)]
    for _ in range(_NUM_ORDERS):
        planes = rng.standard_normal((flat.shape[1], _KEY_BITS), np.float32)
        keys = (flat @ planes > 0) @ (1 << np.arange(_KEY_BITS))  # (N,)
        order = np.argsort(keys, kind="stable")
        ordered, ordered_still = looks[order], stands_still[order]
        for step in range(1, min(_NUM_NEXT + 1, len(order))):
            mean, motion = np.einsum("nkd,nkd->kn", ordered[:-step], ordered[step:])  # (N - step,) each
            are_still = ordered_still[:-step] & ordered_still[step:]
            moves_alike = (mean >= _SAME_MEAN) & (motion >= _SAME_MOTION)
            is_alike = np.where(are_still, mean >= _SAME_STILL, moves_alike)
            places = np.flatnonzero(is_alike)
            found.append(np.stack([order[places], order[places + step]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _differences(picture: np.ndarray) -> np.ndarray:
    """Of each two neighbours of a picture (16, 16): (D,) float32 of length 1."""
    differences = np.concatenate([np.diff(picture, axis=axis).ravel() for axis in (0, 1)])
    unit: np.ndarray = differences / np.linalg.norm(differences)
    return unit
