"""Which files of a folder are one clip."""

from pathlib import Path

import pytest

from pipeline.errors import DecodeError
from pipeline.manifest import clip_of_folder, source_files


def folder_of(path: Path, names: str) -> Path:
    path.mkdir()
    for name in names.split():
        (path / name.replace("~", " ")).touch()
    return path


@pytest.mark.parametrize(
    "names",
    [
        "a.png b.png c.png",
        "frame1_left.png frame1_right.png frame2_left.png frame2_right.png",
        "cover.png frame_1.png frame_2.png title1.png",
        "shot1.png shot2.JPG shot3.jpeg shot10.png",
        "2024-01-01T12-00-58.png 2024-01-01T12-00-59.png 2024-01-01T12-01-00.png 2024-01-01T12-01-01.png",
        "IMG_20231231_235958.jpg IMG_20231231_235959.jpg IMG_20240101_000000.jpg IMG_20240101_000001.jpg",
        "v_Run_g01_c02_0001.jpg v_Run_g01_c02_0002.jpg",
        "1.png notes.txt 2.png 3.png .hidden_1.png .hidden_2.png",
    ],
)
def test_a_folder_of_one_series_or_of_free_names_is_a_clip(tmp_path: Path, names: str) -> None:
    shown = [name for name in names.split() if not name.startswith(".") and not name.endswith(".txt")]
    assert [path.name for path in clip_of_folder(folder_of(tmp_path / "clip", names))] == shown


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (
            "img_00001.jpg img_00002.jpg img_00003.jpg flow_x_00001.jpg flow_x_00002.jpg",
            "2 series of images (flow_x_00001.jpg, flow_x_00002.jpg; img_00001.jpg to img_00003.jpg, 3",
        ),
        (
            "cam1_01.png cam1_02.png cam2_01.png cam2_02.png",
            "2 series of images (cam1_01.png, cam1_02.png; cam2",
        ),
        ("1.png 2.png mask1.png mask2.png", "(1.png, 2.png; mask1.png, mask2.png)"),
        ("1.jpg 2.jpg 1.png 2.png", "(1.jpg, 2.jpg; 1.png, 2.png)"),
        ("rgb~(1).png rgb~(2).png depth~(1).png depth~(2).png", "(depth (1).png, depth (2).png; rgb (1).png"),
        ("cover.jpg a.mp4 b.AVI", "videos (a.mp4, b.AVI) beside images (cover.jpg)"),
        ("a.mp4", "has no images"),
    ],
)
def test_a_folder_of_several_things_is_no_clip_and_they_are_named(
    tmp_path: Path, names: str, named: str
) -> None:
    folder = folder_of(tmp_path / "clip", names)
    with pytest.raises(DecodeError) as caught:
        source_files(folder)
    assert str(caught.value).startswith(f"{folder} h")
    assert named in str(caught.value)


def test_a_folder_that_is_named_like_a_video_is_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", "1.png 2.png")
    folder_of(folder / "other.mp4", "1.png")
    assert len(clip_of_folder(folder)) == 2
