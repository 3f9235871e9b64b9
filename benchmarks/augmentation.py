"""Views and augmentation where train clips are few: test accuracy over several seeds, and what they cost.

Two parts of the embedded corpus with 200 train clips each: images (which digit?) and videos (which
direction?). Maps are layer3 of ResNet-50 at 64 pixels; images are first resized to 76, so that the corners
differ. Each row has the mean over seeds, and a 95 % interval of the mean by Student's t.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in stages.train

import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import Report, Row, arguments
from pipeline.backbone.sources import obtain_weights
from pipeline.backbone.weights import save_weights
from pipeline.corpora import digits
from pipeline.extraction import extract
from pipeline.learn.comparison import answer_split
from pipeline.learn.run import train_many
from pipeline.manifest import Clip, write_manifest
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.training import MemberConfig, TrainConfig
from pipeline.settings.weights import WeightsConfig

NUM_TRAIN = 200
VIEWS: tuple[Any, ...] = ("center", "flip", "corners", "scale0.8")
CORNERS = ("center", "corners")
TRAINING: dict[str, Any] = {"tap": "layer3", "scan": "locations", "epochs": 80, "patience": 20}
# Student's t of 95 % by degrees of freedom.
STUDENTS_T = {1: 12.71, 2: 4.303, 4: 2.776, 9: 2.262}

# Settings of training, and the views in which each is evaluated.
IMAGES: dict[str, tuple[Mapping[str, Any], tuple[tuple[str, ...], ...]]] = {
    "one view": ({}, (("center",), CORNERS)),
    "corners": ({"views": CORNERS}, (("center",), CORNERS)),
    "scale 0.8": ({"views": ("center", "scale0.8")}, (("center",),)),
    "corners, scale 0.8": ({"views": (*CORNERS, "scale0.8")}, (("center",), CORNERS)),
    "flip, which changes digits": ({"views": ("center", "flip")}, (("center",),)),
    "noise 0.3": ({"augment": {"noise": 0.3}}, (("center",),)),
    "noise 1": ({"augment": {"noise": 1.0}}, (("center",),)),
    "mixup 0.4": ({"augment": {"mixup": 0.4}}, (("center",),)),
    "corners, mixup 0.4, noise 0.3": (
        {"views": CORNERS, "augment": {"mixup": 0.4, "noise": 0.3}},
        (("center",), CORNERS),
    ),
}
VIDEOS: dict[str, tuple[Mapping[str, Any], tuple[tuple[str, ...], ...]]] = {
    "no augmentation": ({}, (("center",),)),
    "frame dropout 0.2": ({"augment": {"frame_dropout": 0.2}}, (("center",),)),
    "time warp 0.2": ({"augment": {"time_warp": 0.2}}, (("center",),)),
    "mixup 0.4": ({"augment": {"mixup": 0.4}}, (("center",),)),
    "noise 0.3": ({"augment": {"noise": 0.3}}, (("center",),)),
}


def fewer(clips: Iterable[Clip], *, num_test: int | None) -> list[Clip]:
    """The first NUM_TRAIN train clips, the val clips, and the test clips or the first of them."""
    limits = {"train": NUM_TRAIN, "test": num_test}
    kept: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
    for clip in clips:
        kept[clip.split].append(clip)
    return [clip for split, found in kept.items() for clip in found[: limits.get(split)]]


def make_images(folder: Path, *, quick: bool) -> None:
    config = digits.DigitsConfig()
    rendered = [digits.render_image(scan, config=config) for scan in range(digits.NUM_SCANS)]
    clips = fewer((clip for clip, _ in rendered), num_test=20 if quick else None)
    write_manifest(folder / "manifest.csv", clips)
    pixels = {clip.clip_id: image for clip, image in rendered}
    (folder / "corpus").mkdir()
    for clip in clips:
        Image.fromarray(pixels[clip.clip_id]).save(folder / "corpus" / clip.sources[0])


def make_videos(folder: Path, *, quick: bool) -> None:
    config = digits.DigitsConfig()
    rendered = [digits.render_clip(index, config=config) for index in range(1000)]
    clips = fewer((clip for clip, _ in rendered), num_test=20 if quick else None)
    write_manifest(folder / "manifest.csv", clips)
    frames = {clip.clip_id: images for clip, images in rendered}
    (folder / "corpus").mkdir()
    for clip in clips:
        digits.write_video(folder / "corpus" / clip.sources[0], frames[clip.clip_id], fps=config.fps)


def extracted(folder: Path, views: tuple[Any, ...], *, resize: int, to: str) -> Row:
    """Extract into a new journal; what it took."""
    config = ExtractConfig(taps=("layer3",), views=views, preprocessing={"resize": resize, "crop": 64})
    started = time.perf_counter()
    done = extract(
        folder / "manifest.csv",
        root=folder / "corpus",
        weights=folder.parent / "weights.safetensors",
        config=config,
        features=folder / to,
        journal=folder / f"journal-{to}",
    )
    return {
        "views": len(config.views),
        "seconds": time.perf_counter() - started,
        "frames/s": done.frames_per_second,
        "MB": done.num_bytes / 1e6,
    }


def accuracies(
    folder: Path,
    trainings: Mapping[str, tuple[Mapping[str, Any], tuple[tuple[str, ...], ...]]],
    *,
    seeds: range,
    changes: Mapping[str, Any],
) -> list[Row]:
    """A row for each training and the views in which it is evaluated."""
    rows: list[Row] = []
    for name, (settings, evaluations) in trainings.items():
        members = []
        for seed in seeds:
            config = TrainConfig.model_validate({**TRAINING, **changes, **settings, "seed": seed})
            members.append(MemberConfig(f"{name}-{seed}", config, folder / "manifest.csv"))
        started = time.perf_counter()
        outcomes = train_many(folder / "features/layer3", members, state=folder / "state")
        num_epochs = sum(len(outcome.fit.history) for outcome in outcomes.values())
        epoch_ms = (time.perf_counter() - started) / num_epochs * 1e3
        for views in evaluations:
            asked = EvaluateConfig.model_validate({"split": "test", "views": views})
            found = []
            for outcome in outcomes.values():
                answers = answer_split(
                    outcome.checkpoint, folder / "features/layer3", folder / "manifest.csv", config=asked
                )
                measure = outcome.checkpoint.task.measure(answers)
                found.append(measure(np.ones(len(answers.clips)))["accuracy"])
            half = STUDENTS_T[len(found) - 1] * statistics.stdev(found) / len(found) ** 0.5
            rows.append(
                {
                    "training": name,
                    "evaluated in": ", ".join(views),
                    "accuracy": statistics.mean(found),
                    "from": statistics.mean(found) - half,
                    "to": statistics.mean(found) + half,
                    "epochs": num_epochs / len(members),
                    "ms an epoch": epoch_ms,
                }
            )
    return rows


def main() -> None:
    given = arguments(__doc__)
    report = Report("augmentation", given.quick)
    seeds = range(2) if given.quick else range(5)
    changes = {"epochs": 2} if given.quick else {}
    weights = WeightsConfig(arch="resnet18", source="random:0") if given.quick else WeightsConfig()
    with TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        save_weights(obtain_weights(weights), path=folder / "weights.safetensors")
        images, videos = folder / "images", folder / "videos"
        images.mkdir()
        make_images(images, quick=given.quick)
        report.add(
            "Extraction of images",
            [
                extracted(images, ("center",), resize=76, to="alone"),
                extracted(images, VIEWS, resize=76, to="features"),
            ],
        )
        report.add(
            "Images: which digit, 200 train clips",
            accuracies(images, IMAGES, seeds=seeds, changes=changes),
        )
        report.write(given.json)
        videos.mkdir()
        make_videos(videos, quick=given.quick)
        extracted(videos, ("center",), resize=64, to="features")
        report.add(
            "Videos: which direction, 200 train clips",
            accuracies(
                videos, VIDEOS, seeds=seeds, changes={**changes, "scan": "frames", "pooling": "flatten"}
            ),
        )
        report.write(given.json)


if __name__ == "__main__":
    main()
