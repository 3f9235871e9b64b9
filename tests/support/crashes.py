"""Work for a child process that some items end by a signal, as a decoder's bug does."""

import os
import signal
import time

from pipeline.manifest import Clip
from pipeline.report.page.pictures import Picture


def double(item: int | str) -> int:
    """Twice the number; of a text, whose name is that of a signal, the end of the process."""
    if isinstance(item, str):
        time.sleep(0.2)  # other threads work meanwhile
        os.kill(os.getpid(), signal.Signals[item])
    return 2 * int(item)


def read_or_crash(asked: tuple[Clip | None, int], **_: object) -> Picture:
    """A picture of a clip; the one of clip002 ends the process."""
    clip, _ = asked
    if clip and clip.clip_id == "clip002":
        os.kill(os.getpid(), signal.SIGSEGV)
    return Picture(reason="it is well")
