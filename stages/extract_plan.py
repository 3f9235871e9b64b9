"""`python -m stages.extract --plan`: what a run would do, how long that takes and how much disk."""

import math
from datetime import timedelta
from functools import partial

from pipeline.extraction import make_forecast, preview
from pipeline.extraction.extracted import size_text
from stages.bars import Bars
from stages.extract_job import read_job, show_progress
from stages.places import FEATURES
from stages.project.cache import tracked_files
from stages.project.visible import corpus_root
from stages.settings import check_settings


def show_plan() -> None:
    """Print what a run would do, how long that takes and how much disk. Writes nothing."""
    params, manifest = check_settings()
    if params.extract.imported:
        print(f"Plan:\n  publish the imported features in {params.extract.imported}\nNothing to compute.")
        return
    job = read_job(
        manifest,
        root=corpus_root(params.corpus.root),
        network=params.weights,
        config=params.extract,
        only_plan=True,
    )
    with Bars("clip") as bars:
        earlier_files = partial(tracked_files, FEATURES)
        todo = preview(
            job,
            features=FEATURES,
            earlier_files=earlier_files,
            on_progress=partial(show_progress, bars),
        )
    print(f"Plan:\n{todo.summary()}")
    for name, error in todo.unreadable.items():
        print(f"  {name} can't be read: {error}")
    if not todo.to_extract:
        print("Nothing to compute.")
        return
    cost = make_forecast(
        todo.to_extract,
        root=job.root,
        targets=job.targets,
        backbone=job.backbone,
        config=job.config,
        machine=job.machine,
    )
    if cost is None:
        print("None of the clips that were looked at can be decoded: a run would quarantine them.")
        return
    num_clips = len(todo.to_extract)
    about = "" if cost.num_counted == num_clips else "about "
    print(f"Frames: {about}{cost.num_frames}, counted in {cost.num_counted} of {num_clips} clips.")
    for folder, num_bytes in cost.bytes_by_folder.items():
        print(f"  {FEATURES}/{folder}: {about}{size_text(num_bytes)} more, before compression.")
    if len(job.config.views) > 1:
        views = [f"{name} {_duration(seconds)}" for name, seconds in cost.seconds_by_view.items() if seconds]
        print(f"To compute the views: about {', '.join(views)}.")
    print(
        f"Time: about {_duration(cost.seconds)} on {job.backbone.device}: a decoder gives"
        f" {cost.decode_frames_per_second:.0f} frames/s, the network {cost.compute_frames_per_second:.0f}"
        f" (measured on {cost.num_measured})."
    )
    if cost.seconds_saved_by_other_backend > 0:
        other = "inductor" if job.config.backend == "eager" else "eager"
        saved = _duration(cost.seconds_saved_by_other_backend)
        print(f"extract.backend={other} would save about {saved} of it.")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds)))
