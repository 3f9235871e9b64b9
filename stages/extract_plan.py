"""`python -m stages.extract --plan`: what a run would do, how long that takes and how much disk."""

import math
from collections.abc import Set as AbstractSet
from datetime import timedelta

from pipeline.backbone import seconds_saved_by_compiling
from pipeline.extraction import estimate
from pipeline.store import repackable_keys
from stages.adoption import adoptable_keys
from stages.extract_job import FEATURES, Job, read_job, read_sources, size_text


def show_plan(*, reread: bool = False) -> None:
    """Print what a run would do, how long that takes and how much disk. Writes nothing."""
    job = read_job(only_plan=True)
    read_sources(job, again=reread)
    todo = job.plan()
    if todo.to_extract:
        todo = job.plan(copies=_copies(job))
    print(f"Plan:\n{todo.summary()}")
    for name, error in todo.unreadable.items():
        print(f"  {name} can't be read: {error}")
    if not todo.to_extract:
        print("Nothing to compute.")
        return
    guess = estimate(
        todo.to_extract, root=job.root, targets=job.targets, backbone=job.backbone, config=job.config
    )
    if guess is None:
        print("None of the clips that were looked at can be decoded: a run would quarantine them.")
        return
    num_clips = len(todo.to_extract)
    about = "" if guess.num_counted == num_clips else "about "
    print(f"Frames: {about}{guess.num_frames}, counted in {guess.num_counted} of {num_clips} clips.")
    for tap, num_bytes in guess.bytes_by_tap.items():
        print(f"  features/{tap}: {about}{size_text(num_bytes)} more, before compression.")
    device = job.backbone.device
    eager_seconds = guess.num_frames / guess.compute_frames_per_second
    saved_seconds = seconds_saved_by_compiling(eager_seconds, device=device)
    seconds = guess.seconds - (saved_seconds if job.config.backend == "inductor" else 0)
    print(
        f"Time: about {_duration(seconds)} on {device}: a decoder gives {guess.decode_frames_per_second:.0f}"
        f" frames/s, the network {guess.compute_frames_per_second:.0f} (measured on {guess.num_measured})."
    )
    if job.config.backend == "eager" and saved_seconds > 0:
        print(f"extract.backend=inductor would save about {_duration(saved_seconds)} of it.")
    if job.config.backend == "inductor" and saved_seconds < 0:
        print(f"extract.backend=eager would save about {_duration(-saved_seconds)} of it.")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds)))


def _copies(job: Job) -> dict[str, AbstractSet[bytes]]:
    """By tap, the keys of features that a run would not compute: in another layout or dtype, or with DVC."""
    adoptable = adoptable_keys(FEATURES, [target.contract for target in job.targets])
    return {
        target.contract.tap: repackable_keys(job.journal, target.contract, target.layout)
        | adoptable[target.contract.tap]
        for target in job.targets
    }
