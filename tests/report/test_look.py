"""A look at a corpus: which clips look alike, what is found, and the page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.contract import Sampling
from pipeline.corpora import digits
from pipeline.frames import ClipInfo, read_frames
from pipeline.manifest import Clip, FrameLabel, Question
from pipeline.report.look import Finding, Seen, choose, find, group_alike, survey_clips, write_sheet
from pipeline.report.look.alike import alike_pairs, look_of
from pipeline.report.look.distributions import of_clips, of_seen
from pipeline.settings.extract import Limits
from tests.support.browser import CHROMIUM, NO_BROWSER, open_page
from tests.support.page import Node, read_page

CONFIG = digits.DigitsConfig()
HOSTILE = ["<script>alert(1)</script>", "a & \"b\" 'c'", "{{ 7 * 7 }}", "日本語", "مرحبا\u202e", "x" * 500]


def rendered(number: int) -> np.ndarray:
    """The frames of a clip of the embedded corpus: (T, 64, 64, 3) uint8."""
    return digits.render_clip(number, config=CONFIG)[1]


def resized(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def look_of_video(path: Path) -> np.ndarray:
    batches = read_frames([path], sampling=Sampling(max_frames=8), batch_size=1)
    return look_of([batch.pixels[0] for batch in batches])


def pairs_of(looks: Sequence[np.ndarray]) -> set[tuple[int, int]]:
    return {(first, second) for first, second in alike_pairs(np.stack(looks)).tolist()}


def clip(name: str, *, split: str = "train", **fields: object) -> Clip:
    return replace(Clip(clip_id=name, sources=(f"{name}.mp4",), split=split), **fields)


def seen(
    clip: Clip, *, num_frames: int = 10, seconds: float = 0.9, size: int = 64, flat: bool = False
) -> Seen:
    """A clip whose look is like no other's."""
    rng = np.random.default_rng([*clip.clip_id.encode()])
    look = rng.standard_normal((2, 480), np.float32)
    look /= np.linalg.norm(look, axis=1, keepdims=True)
    info = ClipInfo(num_frames, seconds, size, size)
    return Seen(clip, info, b"strip", np.zeros_like(look) if flat else look)


def texts(findings: Sequence[Finding]) -> dict[str, tuple[str, ...]]:
    return {finding.text: finding.cases for finding in findings}


@pytest.fixture(scope="module")
def looks() -> list[np.ndarray]:
    """Of 150 clips of the embedded corpus."""
    chosen = [np.linspace(0, len(frames) - 1, 8).astype(int) for frames in map(rendered, range(150))]
    return [look_of(list(rendered(number)[places])) for number, places in enumerate(chosen)]


def test_different_clips_of_the_embedded_corpus_do_not_look_alike(looks: list[np.ndarray]) -> None:
    assert pairs_of(looks) == set()


def test_copies_that_are_encoded_again_resized_or_cut_look_like_their_originals(
    looks: list[np.ndarray], tmp_path: Path
) -> None:
    changes = {
        "again": lambda frames: frames,
        "small": lambda frames: resized(frames, 32, 32),
        "large and wide": lambda frames: resized(frames, 160, 90),
        "later": lambda frames: frames[2:],
        "dark": lambda frames: (0.7 * frames + 10).astype(np.uint8),
        "small and earlier": lambda frames: resized(frames[:-2], 48, 48),
    }
    copies = []
    for number, change in enumerate(changes.values()):
        path = tmp_path / f"{number}.mp4"
        digits.write_video(path, change(rendered(number)), fps=25)
        copies.append(look_of_video(path))
    expected = {(number, len(looks) + number) for number in range(len(changes))}
    assert pairs_of([*looks, *copies]) == expected


def test_black_clips_and_still_clips_look_alike_only_if_their_pictures_do() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(5)]
    stills = [look_of([picture] * 6) for picture in pictures]
    black = [look_of([np.full((64, 64, 3), grey, np.uint8)] * 6) for grey in (0, 0, 3, 255)]
    flicker = [look_of([np.full((64, 64, 3), grey, np.uint8) for grey in (0, 255, 0, 255)])] * 2
    copy = look_of(list(resized(np.stack([pictures[3]]), 100, 60)))
    assert pairs_of([*stills, *black, *flicker, copy]) == {(3, 11)}


def test_clips_of_one_fixed_camera_do_not_look_alike() -> None:
    rng = np.random.default_rng(0)
    room = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    found = []
    for _ in range(30):
        (top, left), (down, right) = rng.integers(10, 40, 2), rng.integers(-3, 4, 2)
        frames = np.stack([room] * 8)
        for number, frame in enumerate(frames):
            y, x = np.clip((top + number * down, left + number * right), 0, 52)
            frame[y : y + 12, x : x + 12] = 255
        found.append(look_of(list(frames)))
    assert len(pairs_of(found)) <= 3  # who stands at one place


def test_pairs_are_found_among_many_clips_and_a_crowd_is_connected() -> None:
    rng = np.random.default_rng(0)
    many = rng.standard_normal((3000, 2, 480), np.float32)
    noise = rng.standard_normal((50, 2, 480), np.float32)
    many[-50:] = many[:50] + 0.5 * noise  # cosines of 0.89
    many[1000:1040] = many[1000]
    many /= np.linalg.norm(many, axis=2, keepdims=True)
    clips = [clip(f"c{number}", split="val" if number == 1005 else "train") for number in range(3000)]
    groups = group_alike([Seen(each, look=look) for each, look in zip(clips, many, strict=True)])
    assert [len(group) for group in groups] == [40, *[2] * 50]
    assert [each.clip.clip_id for each in groups[1]] == ["c0", "c2950"]


def test_leaks_damage_and_rare_or_missing_classes_are_named() -> None:
    clips = [clip(f"a{number}", label="a") for number in range(10)]
    clips += [clip(f"a{split}", split=split, label="a") for split in ("val", "test")]
    clips += [clip("b", label="b"), clip("c", split="test", label="c")]
    clips.append(clip("cut", split="val", sources=("a0.mp4",), label="a"))
    opened = [*map(seen, clips[:-2]), Seen(clips[-2], problem="c.mp4 is empty.")]
    twin = replace(opened[0], clip=clips[11])
    found = find(clips, opened, [[opened[0], twin], [opened[1], opened[2]]])
    assert [finding.kind for finding in found] == ["leak", "leak", "damage", *["note"] * 6]
    assert texts(found) == {
        "1 source is in several splits: training sees files that val or test measure with.": (
            "a0.mp4: a0 (train), cut (val)",
        ),
        "In 1 group, clips of several splits look alike: likely copies or cuts of a video.": (
            "a0 (train), atest (test)",
        ),
        "1 of 14 opened clips can't be read.": ("c: c.mp4 is empty.",),
        "1 class is without a clip in train: a model can't learn them.": ("c",),
        "2 classes are without a clip in val: val does not measure them.": ("b", "c"),
        "1 class is without a clip in test: test does not measure them.": ("b",),
        "1 class is rare: fewer than 10 clips in train.": ("b: 1",),
        "In 1 group, clips of one split look alike.": ("a1 (train), a2 (train)",),
        "14 of 15 clips were opened: nothing is known of the pictures of the others.": (),
    }


def test_odd_clips_and_clips_without_a_target_are_named() -> None:
    clips = [clip(f"c{number}", values=(1.0,) if number else ()) for number in range(5)]
    opened = [
        *map(seen, clips[:2]),
        seen(clips[2], num_frames=50, seconds=4.9),
        seen(clips[3], size=640),
        seen(clips[4], flat=True, num_frames=40),
    ]
    assert texts(find(clips, opened, [])) == {
        "1 of 5 clips have no values.": ("c0",),
        "1 clip is of one colour, and compared with no other.": ("c4",),
        "1 clip is of unusual duration: more than 3 times the median, which is 1 s, or less than"
        " 1/3 of it.": ("c2: 5 s",),
        "1 clip is of unusual frame rate: more than 3 times the median, which is 10 frames/s, or less than"
        " 1/3 of it.": ("c4: 43.33 frames/s",),
        "1 clip is of unusual frame size: more than 3 times the median, which is 4096 pixels, or less than"
        " 1/3 of it.": ("c3: 409600 pixels",),
    }


def test_some_clips_of_each_class_and_split_are_chosen() -> None:
    clips = [clip(f"{label}{n}", label=label) for label, most in (("a", 9), ("b", 2)) for n in range(most)]
    assert [each.clip_id for each in choose(clips, at_most=3)] == ["a0", "a4", "a8", "b0", "b1"]
    assert choose(clips) == clips
    many = [clip(f"c{n}", label="abc"[n % 3 if n < 300 else 0]) for n in range(30_000)]
    chosen = choose(many)
    assert len(chosen) == 20_000
    assert sum(each.label == "b" for each in chosen) == 100


def test_each_of_several_labels_is_a_class() -> None:
    clips = [clip("a", label="x|y"), clip("b", label="y"), clip("c", split="val", label="y | x")]
    assert of_clips(clips)[0].rows == {"y": {"train": 2, "val": 1}, "x": {"train": 1, "val": 1}}
    assert "2 classes are rare: fewer than 10 clips in train." in texts(find(clips, [], []))


def test_distributions_count_the_clips_of_each_split() -> None:
    clips = [
        clip("a", label="x", values=(0.0,), captions=("one two", "one two three")),
        clip("b", split="val", label="x", values=(1.0,), questions=(Question("what?", "yes"),)),
        clip("c", label="y", values=(0.0,)),
    ]
    found = {each.title: each for each in of_clips(clips)}
    assert {title: dict(each.rows) for title, each in found.items()} == {
        "Classes": {"x": {"train": 1, "val": 1}, "y": {"train": 1}},
        "Values": {"0": {"train": 2}, "1": {"val": 1}},
        "Words of a caption": {"2": {"train": 1}, "3": {"train": 1}},
        "Questions and their answers": {"what? yes": {"val": 1}},
    }
    many = [clip(str(n), values=(n / 10,)) for n in range(101)]
    (values,) = of_clips(many)
    assert values.text == "0 to 10, median 5."
    assert list(values.rows)[:2] == ["0 to 0.8333", "0.8333 to 1.667"]
    assert [counts["train"] for counts in values.rows.values()] == [9, 8, 8, 9, 8, 8, 9, 8, 8, 9, 8, 9]
    measured = {each.title: each for each in of_seen([seen(clips[0]), seen(clips[1], size=32)])}
    assert measured["Duration"].text == "All 1 s."
    assert dict(measured["Frame size"].rows) == {"32 × 32": {"val": 1}, "64 × 64": {"train": 1}}


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of real clips with hostile names: a copy in another split, a black, a damaged, a missing one."""
    folder = tmp_path_factory.mktemp("look")
    clips = []
    for number, name in enumerate(HOSTILE):
        digits.write_video(folder / f"{number}.mp4", rendered(number), fps=10)
        split = ("train", "val", "test")[number % 3]
        clips.append(Clip(name, (f"{number}.mp4",), split, label=name if number % 2 else "label"))
    digits.write_video(folder / "copy.mp4", resized(rendered(0), 48, 48), fps=10)
    digits.write_video(folder / "black.mp4", np.zeros((5, 64, 64, 3), np.uint8), fps=10)
    (folder / "bad.mp4").write_bytes(b"no video")
    clips += [clip(name, split="test", label="label") for name in ("copy", "black", "bad", "gone")]
    opened = list(survey_clips(clips, root=folder, limits=Limits(), num_threads=2))
    groups = group_alike(opened)
    findings = find(clips, opened, groups)
    path = folder / "reports/look.html"
    write_sheet(path, clips, opened, findings=findings, groups=groups, manifest=HOSTILE[0], root=HOSTILE[1])
    return path


@pytest.fixture(scope="module")
def page(sheet: Path) -> Node:
    return read_page(sheet)


def test_the_page_names_leaks_and_damage_first(page: Node) -> None:
    section = page.at("findings")
    assert section.text(class_="lead") == "Something leaks: clips of different splits show the same."
    leak, damage = section.all(class_="notice")
    assert leak.text("li") == f"{HOSTILE[0]} (train), copy (test)"
    bad, gone = (item.text() for item in damage.all("li"))
    assert bad.startswith("bad: ")
    assert "bad.mp4 can't be decoded" in bad
    assert "gone.mp4 does not exist" in gone
    assert [node.text("h4") for node in page.at("alike").all("article")] == [HOSTILE[0], "copy"]


def test_the_page_has_pictures_by_class_and_split_with_texts_and_nothing_outside(page: Node) -> None:
    headings = [node.text() for node in page.at("clips").all("h3")]
    assert headings.count("test 2 of 4 clips") == 0
    assert (
        "test 3 of 5 clips" in headings
    )  # "label": a clip, its copy and the black one; bad and gone have none
    images = page.all("img")
    assert len(images) == 8 + 2  # clips; the pair
    assert all(image.attributes["alt"].startswith("Some frames of ") for image in images)
    assert all(image.attributes["src"].startswith("data:image/webp;base64,") for image in images)
    anchors = {node.attributes["id"] for node in page if "id" in node.attributes}
    assert {link.attributes["href"][1:] for link in page.all("a")} <= anchors


def test_names_are_shown_as_they_are_whatever_they_hold(sheet: Path, page: Node) -> None:
    shown = [node.text() for node in page.all("h4")]
    assert set(HOSTILE[:5]) <= set(shown)
    assert len(page.all("script")) == 1
    assert "alert(1)</script>" not in sheet.read_text()


def test_clips_of_every_task_have_their_targets_on_the_page(tmp_path: Path) -> None:
    targets = {
        "captions": ("a dog",),
        "values": (0.25, 7.0),
        "questions": (Question("who?", "Ann"),),
        "frame_labels": (FrameLabel(0.0, 1.0, "left"), FrameLabel(1.0, 2.0, "up")),
    }
    expected = {"captions": "a dog", "values": "0.25 7", "questions": "who? Ann", "frame_labels": "left, up"}
    for name, target in targets.items():
        clips = [clip(split, split=split, **{name: target}) for split in ("train", "val", "test")]
        path = tmp_path / f"{name}.html"
        write_sheet(path, clips, list(map(seen, clips)), findings=[], groups=[], manifest="m", root="r")
        section = read_page(path).at("clips")
        assert [card.all("p")[1].text() for card in section.all("article")] == [expected[name]] * 3


@pytest.mark.skipif(not CHROMIUM, reason=NO_BROWSER)
@pytest.mark.parametrize(("width", "is_dark"), [(360, False), (2000, True)])
def test_a_browser_shows_the_page(sheet: Path, tmp_path: Path, width: int, is_dark: bool) -> None:
    expression = """{
        width: innerWidth,
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        background: getComputedStyle(document.body).backgroundColor,
        requests: performance.getEntriesByType("resource").filter((it) => !it.name.startsWith("data:")).length
    }"""
    opened = open_page(sheet, width=width, expression=expression, folder=tmp_path, is_dark=is_dark)
    assert opened.console == []
    assert opened.value == {
        "width": width,
        "overflow": 0,
        "background": "rgb(21, 24, 27)" if is_dark else "rgb(252, 251, 248)",
        "requests": 0,
    }
