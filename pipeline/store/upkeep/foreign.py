"""Features in files of other programs: .npy, .npz, .pt, .pkl and HDF5. No code of a file is ever run."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import FeatureFileError, few

AXES = ("TD", "DT", "TCHW", "THWC", "CTHW")  # of a clip's array

HDF5_SUFFIXES = (".h5", ".hdf5")

_FEATURES = ("features", "feats", "feature", "feat")  # names of the array among others of a file
_SECONDS = "frame_seconds"
SECONDS_SUFFIX = ".seconds"  # of <clip>.seconds.npy beside <clip>.npy
_IDS = ("clip_ids", "video_ids", "ids", "names")  # of the clips of one stacked array


@dataclass(frozen=True)
class ForeignClip:
    """A clip's features in a file."""

    clip_id: str
    file: Path
    load: Callable[[], np.ndarray]  # as they are in the file
    load_seconds: Callable[[], np.ndarray | None]  # times (T,) of its frames; None: the file has none


def foreign_clips(path: Path) -> list[ForeignClip]:
    """The clips of a folder with a file a clip, or of one file with several; sorted.

    A clip is named by its file, or by its array's name in the file. An array is named `features`, or is the
    only one; `frame_seconds` has its times, or does the file <clip>.seconds.npy. One HDF5 or .npz may also
    have a single array `features` (clips, T, ...) and `clip_ids`.

    Raises FeatureFileError for what can't be read, and where nothing is found.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("[!.]*") if file.suffix in _READERS)
        clips = [_clip_of_file(file) for file in files if not file.name.endswith(f"{SECONDS_SUFFIX}.npy")]
    elif path.suffix in _READERS:
        clips = _naming(path)(_clips_in_file)(path)
    elif path.exists():
        raise FeatureFileError(f"{path} is of no known kind. Known: {', '.join(_READERS)}.")
    else:
        raise FeatureFileError(f"There are no features at {path}.")
    if not clips:
        raise FeatureFileError(f"{path} has no features: no file {', '.join(_READERS)}.")
    clips.sort(key=lambda clip: clip.clip_id)
    if twice := [one.clip_id for one, other in pairwise(clips) if one.clip_id == other.clip_id]:
        raise FeatureFileError(f"{path} has several files for {few(dict.fromkeys(twice))}. Keep one a clip.")
    return clips


def usual_rate(clip: ForeignClip) -> float | None:
    """Frames a second by the clip's own times; None where its file has none, or none that increase."""
    seconds = clip.load_seconds()
    if seconds is None or seconds.ndim != 1 or len(seconds) < 2 or not seconds[-1] > seconds[0]:
        return None
    return float((len(seconds) - 1) / (seconds[-1] - seconds[0]))


def _clip_of_file(file: Path) -> ForeignClip:
    def load() -> np.ndarray:
        return _only_array(file, _READERS[file.suffix](file))

    def load_seconds() -> np.ndarray | None:
        beside = file.with_name(f"{file.stem}{SECONDS_SUFFIX}.npy")
        if beside.exists():
            return _read_npy(beside)
        found = None if file.suffix == ".npy" else _READERS[file.suffix](file)
        return _array(file, found[_SECONDS]) if isinstance(found, Mapping) and _SECONDS in found else None

    return ForeignClip(clip_id_of(file.stem), file, _naming(file)(load), _naming(file)(load_seconds))


def _only_array(file: Path, content: Any) -> np.ndarray:
    """The features of a file of one clip."""
    if not isinstance(content, Mapping):
        return _array(file, content)
    names = [name for name in _FEATURES if name in content] or [name for name in content if name != _SECONDS]
    if len(names) != 1:
        raise FeatureFileError(f"{file} has the arrays {few(names)}: name the features 'features'.")
    return _array(file, content[names[0]])


def _clips_in_file(file: Path) -> list[ForeignClip]:
    """The clips of one file; it is read once."""
    content = _READERS[file.suffix](file)
    if not isinstance(content, Mapping):
        return [_clip_of_file(file)]
    features: Any = next((content[name] for name in _FEATURES if name in content), content)
    seconds: Any = content.get(_SECONDS, {})
    if isinstance(features, Mapping):
        of = seconds.get if isinstance(seconds, Mapping) else lambda _: seconds  # one for all
        found = [(name, value, of(name)) for name, value in features.items() if name != _SECONDS]
    else:
        names = next((content[name] for name in _IDS if name in content), None)
        if names is None:
            return [_clip_of_file(file)]
        times = seconds if len(seconds) else [None] * len(names)
        if not len(names) == len(features) == len(times):
            raise FeatureFileError(
                f"{file} has {len(names)} names and {len(times)} rows of times for the {len(features)} clips"
                " of one array."
            )
        ids = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
        found = list(zip(ids, features, times, strict=True))
    return [_clip_in_file(file, str(name), value, times) for name, value, times in found]


def _clip_in_file(file: Path, name: str, value: Any, times: Any) -> ForeignClip:
    def load() -> np.ndarray:
        return _array(file, value)

    def load_seconds() -> np.ndarray | None:
        return None if times is None else _array(file, times)

    return ForeignClip(clip_id_of(name), file, _naming(file)(load), _naming(file)(load_seconds))


def clip_id_of(stem: str) -> str:
    """The id of the clip that `dump` wrote to a file or dataset of this name."""
    return stem.replace("%2F", "/").replace("%2E", ".").replace("%25", "%")


def _array(file: Path, value: Any) -> np.ndarray:
    """An array or tensor as a plain array of numbers."""
    if hasattr(value, "detach"):  # of torch, which has bfloat16 too
        value = value.detach()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).to_dense().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise FeatureFileError(f"{file} has {array.dtype} in place of numbers. Save a plain array.")
    return array


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Raise FeatureFileError, which names the file, when a library can't read it."""
    try:
        yield
    except FeatureFileError:
        raise
    except Exception as error:  # what damaged bytes raise is not known
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = str(error).rstrip(".") or type(error).__name__
        raise FeatureFileError(f"{file} can't be read: {text}.") from None


def _read_npy(file: Path) -> np.ndarray:
    array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def _read_npz(file: Path) -> Mapping[str, np.ndarray]:
    archive: Mapping[str, np.ndarray] = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is no .npz")
    return archive


def _read_pt(file: Path) -> Any:
    import torch  # the format's own reader, which takes seconds to import

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it holds more than tensors, and loading that could run code") from None


def _read_hdf5(file: Path) -> dict[str, Any]:
    """{name: dataset}; the groups `features` and `frame_seconds` are such mappings themselves.

    A dataset <clip>/features is named <clip>, and <clip>/frame_seconds has its times.
    """
    import h5py
    import hdf5plugin  # noqa: F401 (registers codecs)

    found: dict[str, Any] = {}
    opened = h5py.File(file)

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        first, _, rest = name.partition("/")
        group, _, last = name.rpartition("/")
        if rest and first in (*_FEATURES, _SECONDS):
            found.setdefault(first, {})[rest] = item
        elif group and last in _FEATURES:
            found[group] = item
        elif group and last == _SECONDS:
            found.setdefault(_SECONDS, {})[group] = item
        else:
            found[name] = item

    opened.visititems(visit)
    return found


# All that a pickled array names.
_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds arrays and plain containers. Every other name, whose call could do anything, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # before NumPy 2
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it names {module}.{name}, and loading that could run code")


def _latin1(text: str, _encoding: str = "latin1") -> bytes:
    """How Python 3 pickles bytes for Python 2."""
    return text.encode("latin1")


def _read_pickle(file: Path) -> Any:
    with file.open("rb") as opened:
        return _PlainUnpickler(opened, encoding="latin1").load()


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".pkl": _read_pickle,
    ".pickle": _read_pickle,
    **dict.fromkeys(HDF5_SUFFIXES, _read_hdf5),
}
