"""The compute loop's work: packs frames of any clips into batches, and hands out each clip's rows."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.contract import CENTER, FrameView
from pipeline.extraction.decode import ClipEnd, Piece
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.runners import Outputs, Runner, Wait
from pipeline.extraction.targets import Target
from pipeline.extraction.windows import WindowCutter


@dataclass(frozen=True)
class Segment:
    """Consecutive frames, or windows, of one clip inside a batch, seen in one view."""

    clip: PlannedClip
    frame_seconds: np.ndarray  # (T,)
    view: FrameView = CENTER


@dataclass(frozen=True)
class Computed:
    """A segment and the outputs for its frames, of the targets that its clip needs."""

    segment: Segment
    outputs: Outputs[np.ndarray]  # by the targets' names


class Packer:
    """Packs frames, or windows, of any clips into the runner's batches, in each view that the clip needs.

    Outputs of a clip's view come in the order of the frames.

    The last batch is padded, so that the network sees batches of one shape: with most networks, a clip's
    features are the same bits whatever its neighbours are.
    """

    def __init__(self, runner: Runner, targets: Sequence[Target]) -> None:
        self._runner = runner
        self._contracts = {target.contract.name: target.contract for target in targets}
        self._windows = targets[0].contract.windows
        self._cutters: dict[tuple[bytes, FrameView], WindowCutter] = {}  # of clips that have not ended
        self._used = 0
        self._packed: list[Segment | ClipEnd] = []
        self._under_way: deque[tuple[list[Segment | ClipEnd], Wait]] = deque()
        self._done: list[Computed | ClipEnd] = []
        self.num_batches = 0

    def add(self, item: Piece | ClipEnd) -> list[Computed | ClipEnd]:
        """Pack frames, or note the end of a clip. Returns what is done by now."""
        if isinstance(item, Piece):
            self._pack(item)
            return self._take_done()
        self._end_windows(item)
        if self._packed or self._under_way:
            self._packed.append(item)
        else:
            self._done.append(item)
        return self._take_done()

    def finish(self) -> list[Computed | ClipEnd]:
        """Compute what is packed, padded to a full batch. Returns everything that was not returned yet."""
        self._submit()
        while self._under_way:
            self._collect()
        return self._take_done()

    def _pack(self, piece: Piece) -> None:
        views = list(dict.fromkeys(self._contracts[name].view for name in piece.clip.targets))
        for view, pixels in zip(views, self._runner.prepare(piece.pixels, views), strict=True):
            rows, seconds = pixels, piece.frame_seconds
            if self._windows:
                cutter = self._cutters.setdefault((piece.clip.key, view), WindowCutter(self._windows))
                rows, seconds = cutter.add(pixels, seconds)
            self._pack_rows(piece.clip, view, rows, seconds)

    def _end_windows(self, end: ClipEnd) -> None:
        """Pack the last windows of a clip, unless nothing of it is kept."""
        for key in [key for key in self._cutters if key[0] == end.clip.key]:
            cutter = self._cutters.pop(key)
            if end.error is None or end.clip.keep_damaged:
                self._pack_rows(end.clip, key[1], *cutter.end())

    def _pack_rows(self, clip: PlannedClip, view: FrameView, pixels: Tensor, seconds: np.ndarray) -> None:
        """Pack frames (T, 3, h, w) or windows (T, 3, frames, h, w) of a view, and their times."""
        batch = self._runner.batch
        while len(pixels):
            count = min(len(pixels), len(batch) - self._used)
            batch[self._used : self._used + count] = pixels[:count]
            self._packed.append(Segment(clip, seconds[:count], view))
            self._used += count
            pixels, seconds = pixels[count:], seconds[count:]
            if self._used == len(batch):
                self._submit()

    def _submit(self) -> None:
        if self._used:
            self._runner.batch[self._used :] = 0
            self._under_way.append((self._packed, self._runner.submit()))
            self.num_batches += 1
        else:
            self._under_way.append((self._packed, lambda: Outputs({}, {})))
        self._packed, self._used = [], 0
        while len(self._under_way) >= self._runner.depth:
            self._collect()

    def _collect(self) -> None:
        packed, wait = self._under_way.popleft()
        outputs = wait()
        start = 0
        for item in packed:
            if isinstance(item, ClipEnd):
                self._done.append(item)
            else:
                stop = start + len(item.frame_seconds)
                contracts = [self._contracts[name] for name in item.clip.targets]
                shown = [contract for contract in contracts if contract.view == item.view]
                part = Outputs(
                    {contract.name: outputs.rows[contract.tap][start:stop] for contract in shown},
                    {contract.name: outputs.peaks[contract.tap][start:stop] for contract in shown},
                )
                self._done.append(Computed(item, part))
                start = stop

    def _take_done(self) -> list[Computed | ClipEnd]:
        done, self._done = self._done, []
        return done
