"""Values that can't be stored: NaN, infinity, and what is too large for the stored dtype."""

import numpy as np

from pipeline.contract import FeatureContract, StoredDtype

# The least magnitude that is rounded to infinity.
_LIMITS: dict[StoredDtype, float] = {"float16": float(np.finfo(np.float16).max) + 16, "float32": np.inf}


def why_unfit(peaks: np.ndarray, frame_seconds: np.ndarray, contract: FeatureContract) -> str | None:
    """Why rows can't be stored as `contract` says, with tap, time and value; None if they can.

    `peaks` (T,) has the largest magnitude of each row before it is stored, or NaN for a row with a NaN;
    `frame_seconds` (T,) has their times.
    """
    unfit = ~(peaks < _LIMITS[contract.dtype])
    if not unfit.any():
        return None
    first = int(unfit.argmax())
    peak, place = peaks[first], f"{contract.name} at {frame_seconds[first]:.3f} s"
    if np.isfinite(peak):
        return (
            f"{place} has a value of magnitude {peak:.6g}, and float16 ends at 65504. Choose dtype float32."
        )
    remedy = (
        "Look at the weights"
        if contract.precision == "float32"
        else f"Choose precision float32, not {contract.precision}"
    )
    return f"{place}: the network itself gives {peak}, which no dtype can store. {remedy}."


def row_peaks(rows: np.ndarray) -> np.ndarray:
    """The largest magnitude (T,) of each of the rows (T, C, H, W), NaN if it has a NaN."""
    peaks: np.ndarray = np.maximum(rows.max(axis=(1, 2, 3)), -rows.min(axis=(1, 2, 3)))
    return peaks
