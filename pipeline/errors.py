"""The errors that a user can cause, each also the builtin that a Python programmer would expect.

Anything else (OSError, MemoryError, AssertionError, ...) keeps its own type: an OSError may pass and
is worth another try, a `PipelineError` is not before the user has changed something.
"""

from collections.abc import Iterable


def listed(names: Iterable[str], *, at_most: int = 10) -> str:
    """The first names, for a message."""
    names = list(names)
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")


class PipelineError(Exception):
    """Base class: the message states the value, the rule and the way out."""


class ConfigError(PipelineError, ValueError):
    """A parameter is unknown, of the wrong type or impossible."""


class TextFileError(PipelineError, ValueError):
    """A file that a user gave is not the text or the CSV that it should be; the message names the line."""


class ManifestError(PipelineError, ValueError):
    """The manifest and the corpus do not fit together; the message lists every problem with its row."""


class DecodeError(PipelineError, ValueError):
    """A clip's bytes were read, and they are not frames. Permanent: the same bytes fail again."""

    def __init__(self, message: str, *, num_recovered: int = 0) -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())  # file names need not be UTF-8
        self.num_recovered = num_recovered  # frames that were decoded before it failed


class WeightsError(PipelineError, ValueError):
    """Weights can't be had, or do not fit the network."""


class ContractError(PipelineError, ValueError):
    """Features were made in another way than the one asked for; the message names the fields."""


class ShapeError(PipelineError, ValueError):
    """A tensor does not have the axes that a model reads; the message states both shapes."""


class StoreError(PipelineError, RuntimeError):
    """The feature store is missing, foreign, too new or damaged."""


class NonFiniteError(PipelineError, ValueError):
    """Features or answers are infinite or no numbers; the message names their clips."""


class DiskFullError(PipelineError, OSError):
    """No space is left for what is being written. What was committed before is safe."""


class MissingClipError(PipelineError, KeyError):
    """A clip has no features in the store."""

    __str__ = Exception.__str__
