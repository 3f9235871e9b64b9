"""Result: what one run of the engine did, and where its time went."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.extraction.lanes import Lane, Lanes


@dataclass
class Result:
    """What a run did. `seconds` counts from the first clip; compiling comes before, in `setup_seconds`."""

    num_frames: int = 0  # once for each view
    num_clips: int = 0
    num_bytes: int = 0  # of rows, before compression
    num_batches: int = 0
    seconds: float = 0.0
    setup_seconds: float = 0.0
    num_quarantined: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # clip id -> an error that may pass
    lanes: Lanes = field(default_factory=dict)

    def add(self, other: "Result") -> None:
        """Add what another run did."""
        self.num_frames += other.num_frames
        self.num_clips += other.num_clips
        self.num_bytes += other.num_bytes
        self.num_batches += other.num_batches
        self.seconds += other.seconds
        self.setup_seconds += other.setup_seconds
        self.num_quarantined += other.num_quarantined
        self.failed |= other.failed
        for name, lane in other.lanes.items():
            own = self.lanes.setdefault(name, Lane(lane.num_threads))
            own.add(busy=lane.busy_seconds, starved=lane.starved_seconds, blocked=lane.blocked_seconds)

    def lane_report(self) -> dict[str, Any]:
        """The shares of the run's time in which each lane was busy, starved and blocked, over its threads.

        `limited_by` names the busiest lane; None when nothing ran.
        """
        report: dict[str, Any] = {}
        for name, lane in self.lanes.items():
            thread_seconds = max(self.seconds * lane.num_threads, 1e-9)
            report[name] = {
                "threads": lane.num_threads,
                "busy": round(lane.busy_seconds / thread_seconds, 3),
                "starved": round(lane.starved_seconds / thread_seconds, 3),
                "blocked": round(lane.blocked_seconds / thread_seconds, 3),
            }
        busiest = max(report, key=lambda name: report[name]["busy"], default=None)
        return {"limited_by": busiest, "lanes": report}
