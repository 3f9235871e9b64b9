"""What every stage does around its work: log lines that respect progress bars, errors as one message."""

import logging
import sys
from collections.abc import Callable

from tqdm import tqdm

from pipeline.errors import PipelineError


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stderr)


def run(main: Callable[[], None]) -> None:
    """Run a stage; exit with 1 and the message for an error that the user can mend."""
    logging.basicConfig(level=logging.INFO, handlers=[_Handler()], force=True)
    for chatty in ("dvc", "dvclive", "dvc_data", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        main()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted. What was committed is kept: run the same command to go on.", file=sys.stderr)
        sys.exit(130)
