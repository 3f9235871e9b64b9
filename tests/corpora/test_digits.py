"""The embedded corpus: its targets are true, and its frames do not give the answer away."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

import stages.digits
from pipeline.contract import Sampling
from pipeline.corpora import digits
from pipeline.corpora.digits import (
    DIRECTIONS,
    NAMES,
    NUM_SCANS,
    DigitsConfig,
    fewer,
    image_sets,
    long_tail,
    render_clip,
    render_crowd,
    render_image,
    render_number,
    write_video,
)
from pipeline.frames import read_frames
from pipeline.manifest import Clip, Question, check_sources, read_manifest, write_manifest
from tests.support.in_process import run_main
from tests.support.project import REPOSITORY

pytestmark = pytest.mark.slow

CONFIG = DigitsConfig()


@pytest.fixture(scope="module")
def corpus() -> list[tuple[Clip, np.ndarray]]:
    return [render_clip(index, config=CONFIG) for index in range(140)]


def measured_step(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """The shift (y, x) that best maps the digit of one frame onto the other."""
    ink = [np.maximum(frame.astype(float).min(axis=2) - 90, 0) for frame in (before, after)]  # (H, W)
    correlation = np.fft.ifft2(np.fft.fft2(ink[1]) * np.fft.fft2(ink[0]).conj()).real
    shift = np.unravel_index(correlation.argmax(), correlation.shape)
    y, x = ((int(s) + size // 2) % size - size // 2 for s, size in zip(shift, correlation.shape, strict=True))
    return y, x


def test_the_digit_moves_as_label_frame_labels_and_value_say(corpus: list[tuple[Clip, np.ndarray]]) -> None:
    for clip, frames in corpus:
        speed = max(map(abs, clip.values))
        assert clip.values == pytest.approx(np.array(DIRECTIONS[clip.label]) * speed)
        assert clip.frame_labels[0].label == clip.label
        for index in range(1, len(frames)):
            seconds = index / CONFIG.fps
            (label,) = (i.label for i in clip.frame_labels if i.start_seconds <= seconds < i.end_seconds)
            step = np.array(DIRECTIONS[label]) * speed
            assert measured_step(frames[index - 1], frames[index]) == pytest.approx(step, abs=1), clip.clip_id


def test_frame_labels_cover_the_clip_and_the_label_lasts_longer(
    corpus: list[tuple[Clip, np.ndarray]],
) -> None:
    for clip, frames in corpus:
        first, *others = clip.frame_labels
        assert first.start_seconds == 0
        assert clip.frame_labels[-1].end_seconds == len(frames) / CONFIG.fps
        assert all(first.end_seconds == other.start_seconds for other in others)
        assert all(first.end_seconds > other.end_seconds - other.start_seconds for other in others)
        assert all(other.label != first.label for other in others)
    num_turning = sum(len(clip.frame_labels) == 2 for clip, _ in corpus)
    assert 0.1 < num_turning / len(corpus) < 0.3


def test_captions_name_the_scanned_digit_and_its_directions(corpus: list[tuple[Clip, np.ndarray]]) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits().target
    for clip, _ in corpus:
        assert clip.group is not None
        name = NAMES[digits[int(clip.group.removeprefix("scan_"))]]
        moves = ", then ".join(interval.label for interval in clip.frame_labels)
        assert clip.captions == (f"the digit {name} moves {moves}",)


def test_questions_have_true_answers_and_one_is_yes_in_half_of_the_clips(
    corpus: list[tuple[Clip, np.ndarray]],
) -> None:
    num_yes = 0
    for clip, _ in corpus:
        moves = [interval.label for interval in clip.frame_labels]
        digit, first, last, other = clip.questions
        assert (digit.question, digit.answer) == ("which digit?", clip.captions[0].split()[2])
        assert (first.question, first.answer) == ("which way does it move first?", moves[0])
        assert (last.question, last.answer) == ("which way does it move last?", moves[-1])
        asked = other.question.removeprefix("does it move ").removesuffix("?")
        assert other.answer == ("yes" if asked in moves else "no")
        num_yes += other.answer == "yes"
    assert 0.4 < num_yes / len(corpus) < 0.6


def test_splits_share_no_scan_even_when_scans_are_used_again() -> None:
    split_of: dict[str | None, str] = {}
    for index in [*range(0, 300), *range(1797, 2000)]:
        clip, _ = render_clip(index, config=CONFIG)
        assert split_of.setdefault(clip.group, clip.split) == clip.split
    assert len(split_of) == 300


def test_splits_labels_and_lengths_are_balanced(corpus: list[tuple[Clip, np.ndarray]]) -> None:
    splits = [clip.split for clip, _ in corpus]
    assert [splits.count(split) for split in ("train", "val", "test")] == [100, 20, 20]
    labels = [clip.label for clip, _ in corpus]
    assert all(20 <= labels.count(label) <= 50 for label in DIRECTIONS)
    assert {len(frames) for _, frames in corpus} == set(range(10, 15))


def test_positions_do_not_tell_opposite_directions_apart() -> None:
    """The middle of a clip's digit, over all frames, is spread alike for left and right, up and down."""
    config = DigitsConfig(turn_share=0)
    centres: dict[str, list[np.ndarray]] = {label: [] for label in DIRECTIONS}
    for index in range(400):
        clip, frames = render_clip(index, config=config)
        ink = np.maximum(frames.astype(float).min(axis=3) - 110, 0).sum(axis=0)  # (H, W)
        grid = np.indices(ink.shape)
        centres[str(clip.label)].append((grid * ink).sum(axis=(1, 2)) / ink.sum())
    for one, other in (("left", "right"), ("up", "down")):
        difference = np.mean(centres[one], axis=0) - np.mean(centres[other], axis=0)
        spread = np.sqrt(sum(np.var(centres[name], axis=0) / len(centres[name]) for name in (one, other)))
        assert (abs(difference) < 3 * spread).all()


def test_clips_depend_on_the_seed() -> None:
    clip, _ = render_clip(3, config=CONFIG)
    other_clip, _ = render_clip(3, config=DigitsConfig(seed=1))
    assert other_clip != clip


def test_a_video_shows_the_rendered_frames_and_its_bytes_are_always_the_same(tmp_path: Path) -> None:
    for index in range(20):
        _, frames = render_clip(index, config=CONFIG)
        for name in ("a.mp4", "b.mp4"):
            write_video(tmp_path / name, frames, fps=CONFIG.fps)
        assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
        (batch,) = read_frames([tmp_path / "a.mp4"], sampling=Sampling())
        assert batch.frame_seconds == pytest.approx(np.arange(len(frames)) / CONFIG.fps)
        error = batch.pixels.astype(float).mean(axis=3) - frames.astype(float).mean(axis=3)  # brightness
        assert np.sqrt((error**2).mean()) < 8


@pytest.mark.parametrize(
    "values",
    [
        {"min_frames": 12, "max_frames": 11},
        {"min_speed": 7},
        {"max_speed": 32},
        {"digit_size": 65},
        {"size": 63},
        {"colour": "red"},
    ],
)
def test_impossible_parameters_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DigitsConfig.model_validate(values)


def test_the_committed_manifests_are_what_the_code_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """To make them anew: `write_manifest` of these clips."""
    background = digits._background
    monkeypatch.setattr(digits, "_background", lambda rng, **_: background(rng, size=1))
    monkeypatch.setattr(digits, "_moved", lambda image, *_: image[:1, :1])  # frames of one pixel: quicker
    clips = [render_clip(index, config=CONFIG)[0] for index in range(6000)]
    images = [render_image(scan, config=CONFIG)[0] for scan in range(NUM_SCANS)]
    made = {
        "digits.csv": clips[:1000],
        "digits_long_tail.csv": long_tail(clips[:1000]),
        "digit_crowds.csv": [render_crowd(index, config=CONFIG)[0] for index in range(700)],
        "digit_numbers.csv": [render_number(index, config=CONFIG)[0] for index in range(700)],
        "digits_4000.parquet": clips[:4000],
        "digits_6000.parquet": clips,
        "digit_images.csv": images,
        "digit_images_200.csv": fewer(images, num_train=200),
        "digit_sets.csv": image_sets(images, num_sets=1000, config=CONFIG),
    }
    assert {path.name for path in (REPOSITORY / "manifests").glob("digit*")} == made.keys()
    for name, expected in made.items():
        assert list(read_manifest(REPOSITORY / "manifests" / name)) == expected, name


def test_the_stage_renders_what_is_missing_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    clips = [render_clip(index, config=CONFIG)[0] for index in range(14)]
    write_manifest(tmp_path / "manifests/digits.csv", clips)
    old = tmp_path / "corpus/digits/digit_00003.mp4"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")

    status, stdout, _ = run_main(stages.digits.main, tmp_path)
    assert (status, stdout) == (0, "manifests/digits.csv: rendered 13 of 14 files.\n")
    assert sorted(path.name for path in old.parent.iterdir()) == [clip.sources[0] for clip in clips]
    assert old.read_bytes() == b"old"
    check_sources(read_manifest(tmp_path / "manifests/digits.csv"), root=old.parent)
    _, frames = render_clip(13, config=CONFIG)
    write_video(tmp_path / "video", frames, fps=CONFIG.fps)
    assert (old.parent / "digit_00013.mp4").read_bytes() == (tmp_path / "video").read_bytes()

    status, stdout, stderr = run_main(stages.digits.main, tmp_path)
    assert (status, stdout, stderr) == (0, "manifests/digits.csv: none of 14 files is missing.\n", "")


def test_the_stage_renders_the_images_of_several_manifests_once(tmp_path: Path) -> None:
    images = [render_image(scan, config=CONFIG)[0] for scan in range(70)]
    write_manifest(tmp_path / "images.csv", images[:60])
    write_manifest(tmp_path / "sets.parquet", image_sets(images, num_sets=100, config=CONFIG))
    status, stdout, _ = run_main(stages.digits.main, tmp_path, "images.csv", "sets.parquet")
    assert (status, stdout) == (0, "images.csv, sets.parquet: rendered 70 of 70 files.\n")
    for clip in images:
        _, pixels = render_image(int(clip.clip_id.removeprefix("scan_")), config=CONFIG)
        with Image.open(tmp_path / "corpus/digit_images" / clip.sources[0]) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("source", ["mine.mp4", "digit_00001.png", "a/digit_00001.mp4", "scan_1.png"])
def test_a_manifest_of_another_corpus_is_refused_and_nothing_is_rendered(tmp_path: Path, source: str) -> None:
    clips = [render_clip(index, config=CONFIG)[0] for index in range(14)]
    write_manifest(tmp_path / "mine.csv", [*clips, replace(clips[0], clip_id="mine", sources=(source,))])
    status, _, stderr = run_main(stages.digits.main, tmp_path, "mine.csv")
    assert status == 1
    assert f"mine.csv: the source '{source}' is not of the embedded corpus" in stderr
    assert not (tmp_path / "corpus").exists()


def test_images_and_sets_are_what_their_targets_say_and_straddle_no_split() -> None:
    from sklearn.datasets import load_digits

    rendered = [render_image(scan, config=CONFIG) for scan in range(100)]
    digits = load_digits().target
    num_located = 0
    for scan, (clip, pixels) in enumerate(rendered):
        assert pixels.shape == (64, 64, 3)
        assert clip.values == (float(digits[scan]),)
        assert clip.label == NAMES[digits[scan]]
        ink = np.argwhere(pixels.min(axis=2) > 130)  # (M, 2)
        vertical, horizontal = np.where(ink.mean(axis=0) < 31.5, ["upper", "left"], ["lower", "right"])
        if abs(ink.mean(axis=0) - 31.5).min() > 2:  # ink is not spread evenly over its square
            assert clip.captions == (f"the digit {clip.label} at the {vertical} {horizontal}",)
            num_located += 1
        first, second = clip.questions
        assert first == Question("which digit?", clip.label)
        asked = second.question.split()[-2]
        assert second.answer == ("yes" if asked in clip.captions[0].split() else "no")
    assert num_located > 70
    images = {clip.sources[0]: clip for clip, _ in rendered}
    for clip in image_sets(list(images.values()), num_sets=50, config=CONFIG):
        members = [images[source] for source in clip.sources]
        assert 2 <= len(members) <= 5
        assert {member.split for member in members} == {clip.split}
        assert clip.values == (sum(member.values[0] for member in members),)
        assert clip.label == NAMES[int(max(member.values[0] for member in members))]


def test_the_digits_of_a_crowd_are_there_when_its_labels_say_so() -> None:
    num_overlapping = 0
    for index in range(28):
        clip, frames = render_crowd(index, config=CONFIG)
        quarters = frames.reshape(len(frames), 2, 32, 2, 32, 3).min(axis=5).max(axis=(2, 4))  # (T, 2, 2)
        times = np.arange(len(frames)) / CONFIG.fps + 1e-9
        counts = [sum(i.start_seconds <= time < i.end_seconds for i in clip.frame_labels) for time in times]
        assert (quarters > 150).sum(axis=(1, 2)).tolist() == counts
        assert clip.labels == tuple(dict.fromkeys(item.label for item in clip.frame_labels))
        num_overlapping += clip.overlap is not None
    assert 5 < num_overlapping < 23
    with pytest.raises(ValueError, match="digit_size 40 is more than half of size 64"):
        render_crowd(0, config=DigitsConfig(digit_size=40, max_speed=1.6))


def test_the_digits_of_a_number_stand_one_after_another() -> None:
    for index in range(28):
        clip, frames = render_number(index, config=CONFIG)
        # Background, or a digit that stands somewhere: frames change where one comes, goes, or gives way.
        shown = frames.min(axis=3).max(axis=(1, 2)) > 150  # (T,)
        changed = np.append(True, (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)))
        assert (shown & changed).sum() == len(clip.captions[0].split())
        lengths = np.diff(np.flatnonzero(changed), append=len(frames))[shown[changed]]
        assert set(lengths) <= {2, 3, 4}


def test_an_image_and_a_video_of_one_scan_are_in_the_same_split() -> None:
    for index in range(20):
        clip, _ = render_clip(index, config=CONFIG)
        assert clip.group is not None
        image, _ = render_image(int(clip.group.removeprefix("scan_")), config=CONFIG)
        assert image.split == clip.split
