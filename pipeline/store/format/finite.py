"""What can't be stored: values that are no numbers, or are too large for the stored dtype."""

import numpy as np

from pipeline.contract import FeatureContract

# From here on a magnitude is rounded to infinity.
_LIMITS = {"float16": float(np.finfo(np.float16).max) + 16, "float32": np.inf}


def why_unfit(peaks: np.ndarray, frame_seconds: np.ndarray, contract: FeatureContract) -> str | None:
    """Why rows can't be stored as `contract` says, naming the tap, value, time and remedy; None if they can.

    Takes the largest magnitude of each row (T,) before it is stored, NaN if it has a NaN, and the times (T,).
    """
    unfit = ~(peaks < _LIMITS[contract.dtype])
    if not unfit.any():
        return None
    first = int(unfit.argmax())
    peak, place = peaks[first], f"{contract.tap} at {frame_seconds[first]:.3f} s"
    if np.isfinite(peak):
        return (
            f"{place} has a value of magnitude {peak:.6g}, and float16 ends at 65504. Set extract.dtype:"
            " float32."
        )
    remedy = (
        "Look at the weights (python -m stages.weights)"
        if contract.precision == "float32"
        else "Set extract.precision: float32"
    )
    return f"{place}: the network itself gives {peak}, which no extract.dtype mends. {remedy}."


def row_peaks(rows: np.ndarray) -> np.ndarray:
    """The largest magnitude (T,) of each of the rows (T, C, H, W), NaN if it has a NaN."""
    peaks: np.ndarray = np.maximum(rows.max(axis=(1, 2, 3)), -rows.min(axis=(1, 2, 3)))
    return peaks
