"""What every stage does around its work: log lines beside progress bars, tables, errors as one message."""

import io
import logging
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence

from pipeline.errors import JournalError, PipelineError, os_error_text
from pipeline.system.memory import keep_freed_memory
from stages.bars import ProgressBar
from stages.places import named_journal
from stages.remedies import REMEDIES, remedy_of


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        ProgressBar.write(f"{prefix}{record.getMessage()}", file=sys.stderr)


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Aligned columns under the names of the first row; all rows have the same."""
    if not rows:
        return
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def run(main: Callable[[], None]) -> None:
    """Run a stage; exit with 1, the message and its remedy for an error that the user can mend.

    With FRAMECACHE_TRACEBACK set, an OSError keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, handlers=[_Handler()], force=True)
    for chatty in ("dvc", "dvclive", "dvc_data", "matplotlib", "onnx_ir", "onnxscript"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    keep_freed_memory()
    _allow_open_files()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the locale may lack letters of names and labels
    try:
        main()
        sys.stdout.flush()
    except PipelineError as error:
        lines = [f"error: {error}", *filter(None, [remedy_of(error)])]
        print(*lines, sep="\n" if "\n" in lines[0] else " ", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if _reader_has_left(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        text = os_error_text(error)
        if text is None or "FRAMECACHE_TRACEBACK" in os.environ:
            raise
        print(f"error: {text}{_journal_hint(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted. What was committed is kept: run the same command to go on.", file=sys.stderr)
        sys.exit(130)


def _allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may be: a view keeps each of its shards open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _reader_has_left(error: OSError) -> bool:
    """Whether nobody reads the output any more, as in `| head`. See docs.python.org, library/signal."""
    return isinstance(error, BrokenPipeError) and error.filename is None


def _journal_hint(error: OSError) -> str:
    """The way out where the journal is the place that can't be used."""
    name, journal = str(error.filename), str(named_journal())
    if name != journal and not name.startswith(f"{journal}/"):
        return ""
    return f" This path is in the journal. {REMEDIES[JournalError]}"
