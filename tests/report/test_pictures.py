"""Strips and videos of clips for pages: which frames they show, when, and how large they are."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.contract import Sampling
from pipeline.manifest import Clip
from pipeline.report.page.pictures import Picture, has_encoder, read_picture, strip_of
from pipeline.settings.extract import Limits
from tests.support.media import write_video
from tests.support.toy import make_clip

SIZE = (96, 64)  # width and height in pixels
FRAME_SECONDS = 0.1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", num_frames=30, size=SIZE[::-1])
    return folder


def picture(
    root: Path,
    clip: Clip | None = None,
    *,
    sampling: object = "all",
    strip_bytes: int = 1_000_000,
    video_bytes: int = 0,
) -> Picture:
    return read_picture(
        clip or make_clip("a"),
        root=root,
        sampling=Sampling.model_validate(sampling),
        limits=Limits(),
        strip_bytes=strip_bytes,
        video_bytes=video_bytes,
    )


def test_a_strip_holds_eight_frames_that_are_spread_over_the_clip(root: Path) -> None:
    found = picture(root)
    assert found.reason == ""
    assert len(found.frames) == len(found.frame_seconds) == 8
    assert found.frame_seconds[0] < 0.4  # an eighth of the clip
    assert found.frame_seconds[-1] > 2.5
    assert np.ptp(np.diff(found.frame_seconds)) < 1.001 * FRAME_SECONDS
    image = Image.open(io.BytesIO(found.strip))
    assert image.format == "WEBP"
    assert image.size == found.size == (8 * SIZE[0] + 7 * 2, SIZE[1])
    assert found.video == b""


def test_a_strip_holds_frames_that_extraction_reads(root: Path) -> None:
    clip = make_clip("a", start_seconds=0.4, end_seconds=1.5)
    assert picture(root, clip, sampling={"every": 5}).frame_seconds == pytest.approx((0.4, 0.9, 1.4))
    assert len(picture(root, sampling={"count": 3}).frames) == 3


def test_a_video_shows_each_frame_at_its_time(root: Path) -> None:
    if not has_encoder():
        pytest.skip("this PyAV has no encoder libvpx-vp9")
    found = picture(root, sampling={"every": 3}, video_bytes=1_000_000)
    with av.open(io.BytesIO(found.video)) as container:
        frames = list(container.decode(video=0))
    assert [round(frame.time, 3) for frame in frames] == pytest.approx([0.3 * n for n in range(10)])
    assert {(frame.width, frame.height) for frame in frames} == {found.video_size} == {SIZE}


def test_pictures_that_are_too_large_become_lower_and_then_are_left_out(root: Path) -> None:
    whole = picture(root, video_bytes=1_000_000)
    lower = picture(root, strip_bytes=len(whole.strip) - 1)
    assert lower.size[1] < whole.size[1]
    assert len(lower.strip) < len(whole.strip)
    none = picture(root, strip_bytes=10)
    assert (none.strip, none.video) == (b"", b"")
    assert none.reason == "its frames take more than the page's 10 bytes a clip"
    assert picture(root, video_bytes=10).video == b""


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"no video", "a.mp4")])
def test_a_clip_that_can_not_be_read_has_the_reason(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content:
        (tmp_path / "a.mp4").write_bytes(content)
    assert reason in picture(tmp_path).reason


def test_frames_of_other_sizes_have_cells_of_the_first_ones_shape() -> None:
    frames = [Image.new("RGB", size, "white") for size in ((40, 20), (20, 40))]
    data, size = strip_of(frames, height=10)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert size == (42, 10)
    assert pixels[:, :20].min() > 250
    assert pixels[:, 20:22, 3].max() == 0  # the gap
    assert pixels[:, 22:].min() > 250
