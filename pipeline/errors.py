"""The errors that a user can cause. Each is also the builtin error that a Python programmer would expect.

All other errors (OSError, MemoryError, ...) keep their own type. After an OSError another try may succeed;
after a `PipelineError` it can't, before the user has changed something.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_NO_ACCESS = "Have its owner give you access (`ls -ld` names the owner), or choose another place."
_NO_ANSWER = (
    "The disk or its connection does not answer as it should: look at it, then run the command again."
)
_NO_SPACE = "What was committed is kept: make space, then run the same command to go on."
_REMEDIES = {
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: "Choose a place that can be written to.",
    errno.ENOENT: "Correct the path, or create what is missing.",
    errno.EEXIST: "Something else has this name: move it away, or choose another name.",
    errno.ENOTDIR: "A file is where a folder is needed: move it away, or correct the path.",
    errno.EISDIR: "A folder is where a file is needed: correct the path.",
    errno.ENOTEMPTY: "Something else writes to this folder: end it, then run the command again.",
    errno.ELOOP: "Its symlinks form a circle: correct them.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: _NO_SPACE,
    errno.EMFILE: "Allow more open files (`ulimit -n 65536`), then run the command again.",
    errno.ENFILE: "The machine has too many open files: end other programs, then run the command again.",
    errno.ENOMEM: "The machine has too little memory: end other programs, then run the command again.",
    errno.EIO: _NO_ANSWER,
    errno.ESTALE: _NO_ANSWER,
    errno.ETIMEDOUT: _NO_ANSWER,
    errno.ENODEV: _NO_ANSWER,
    errno.ENXIO: _NO_ANSWER,
}


def os_error_text(error: OSError) -> str | None:
    """An OSError as a sentence with its remedy: `Permission denied: /data/x. Have its owner ...`.

    None if the error names no file and is of no kind that a user can mend: then it is a bug.
    """
    if error.filename is None and error.errno not in _REMEDIES:
        return None
    names = [
        name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)
    ]
    text = str(error.strerror or error)
    if names:
        text += ": " + " -> ".join(map(os.fsdecode, names))
    # The name that a file has while it is written means nothing to the reader.
    text = re.sub(r"\.([^/\s]+)\.partial-\w+", r"\1", text)
    return f"{text}. {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else f"{text}."


def error_text(error: Exception) -> str:
    """The message about an error that reading a clip's source raised."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return (isinstance(error, OSError) and os_error_text(error)) or str(error)


def few(names: Iterable[object], *, at_most: int = 10) -> str:
    """The first names, for a sentence: `a, b, c and 7 more`."""
    texts = list(map(str, names))
    more = f" and {len(texts) - at_most} more" if len(texts) > at_most else ""
    return ", ".join(texts[:at_most]) + more


def count_of(number: int, nouns: str) -> str:
    """`1 clip`, `2 clips`, from a noun in a regular plural."""
    return f"{number:,} {nouns if number != 1 else nouns.removesuffix('s')}"


def listed(lines: Iterable[str], *, at_most: int = 20) -> str:
    """The first lines, indented, to stand below a heading; the last one says how many more there are."""
    texts = list(lines)
    more = [f"... and {len(texts) - at_most} more"] if len(texts) > at_most else []
    return "\n".join(f"  {text}" for text in [*texts[:at_most], *more])


class PipelineError(Exception):
    """The base of these errors. A message states the value, the rule and what to do."""


class ConfigError(PipelineError, ValueError):
    """A parameter is unknown, of the wrong type or impossible."""


class QuestionsError(ConfigError):
    """Questions are given to a model that takes none, or are missing where it needs them."""


class CheckClipError(ConfigError):
    """There are no frames to compare an exported file with: a source can't be read."""


class MissingPackageError(PipelineError, ImportError):
    """A package that only some uses need is not installed; the message names the extra that has it."""


@contextmanager
def extra(name: str, *, use: str) -> Iterator[None]:
    """Around the import of a package that belongs to one of the extras in pyproject.toml.

    Raises MissingPackageError, which says that `use` needs the package, where it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise MissingPackageError(
            f"{use} needs the package {package}: pip install 'framecache[{name}]'"
        ) from error


class TextFileError(PipelineError, ValueError):
    """A user's file is not the text or the CSV that it should be; the message names the line."""


class ManifestError(PipelineError, ValueError):
    """A manifest breaks a rule or does not fit its corpus; the message lists every problem with its row."""


class MissingManifestError(ManifestError):
    """The manifest is not there."""


class TornGroupError(ManifestError):
    """A group of clips is in several splits."""


class LeakError(ManifestError):
    """Clips of several splits are of one file, or look alike."""


class FolderTreeError(ManifestError):
    """The folders of a corpus do not tell its clips' labels and splits."""


class KeptManifestError(ManifestError):
    """What is already in a manifest can't be kept, or does not fit what is added."""


class DecodeError(PipelineError, ValueError):
    """A clip's bytes are not frames. This is permanent: the same bytes fail again."""

    def __init__(self, message: str, *, num_recovered: int = 0) -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())  # file names need not be UTF-8
        self.num_recovered = num_recovered  # frames that were decoded before it failed


class WeightsError(PipelineError, ValueError):
    """Weights can't be had, or do not fit the network."""


class WeightsFileError(WeightsError):
    """A weights file is missing or damaged."""


class MissingNetworkError(WeightsError):
    """No file has the weights of the network that made some features; the message has their sha256."""


class ForeignFeaturesError(MissingNetworkError):
    """Features were imported: no network here makes them of frames."""


class ForeignWeightsError(WeightsError):
    """A file of weights lacks what a weights file of framecache says of itself."""


class ForeignCodeError(WeightsError):
    """Weights are of a network whose code the settings do not name: it is not imported."""


class CheckpointError(PipelineError):
    """A trained model is missing, incomplete, or of another version."""


class UnequalCheckpointsError(CheckpointError):
    """Two models that are to be compared were trained in different ways."""


class RunError(PipelineError, ValueError):
    """A run is unknown or lacks files, or runs can't be compared; the message says why."""


class UnequalClipsError(RunError):
    """Runs that are to be compared were asked about different clips."""


class InputChangedError(PipelineError):
    """A file that a run reads was changed while it ran; what it has done so far is kept."""


class TooFewFramesError(ManifestError):
    """A clip has fewer frames than its target needs."""


class ContractError(PipelineError, ValueError):
    """Features were made in another way than the one asked for; the message names the fields."""


class ShapeError(PipelineError, ValueError):
    """A tensor does not have the axes that a model reads; the message states both shapes."""


class StoreError(PipelineError, RuntimeError):
    """The feature store is missing, foreign, too new or damaged."""


class DamagedError(StoreError):
    """A file of the store is not what was written."""


class MissingFeaturesError(StoreError):
    """There is no view of features, or files of it are missing."""


class RemoteError(PipelineError, OSError):
    """An object store can't be read, also after several tries; the message names the file."""


class MissingTapError(MissingFeaturesError):
    """There are features, but none of this tap; the message lists the taps that there are."""


class ExperimentError(StoreError):
    """DVC or git can't make experiments of a project."""


class JournalError(StoreError):
    """The journal can't be written or locked where it is."""


class FeatureFileError(PipelineError, ValueError):
    """A file is not the features that it should be; the message names file and clip."""


class UnknownTimesError(FeatureFileError):
    """Nothing says when the frames of imported features are shown."""


class NonFiniteError(PipelineError, ValueError):
    """Features or answers are infinite or no numbers; the message names their clips."""


class NonFiniteFeaturesError(NonFiniteError):
    """Features in a store are infinite or no numbers."""


class OutOfMemoryError(PipelineError, MemoryError):
    """The host or its GPU has too little memory for a batch. What was committed before is safe."""


class DiskFullError(PipelineError, OSError):
    """The disk is full. What was committed before is safe."""


class MissingClipError(PipelineError, KeyError):
    """A clip has no features in the store."""

    __str__ = Exception.__str__
