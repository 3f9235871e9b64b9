"""Frames: real files, whose frames show their own index."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.contract import Sampling
from pipeline.errors import DecodeError
from pipeline.frames import FrameBatch, read_frames, source_files
from tests.media import frame_index, index_frame, write_image, write_image_folder, write_video

DATA = Path(__file__).parent / "data"
ALL = Sampling()


def read(*paths: Path, sampling: Sampling = ALL, **options: float) -> tuple[list[int], list[float]]:
    """The indices that the frames show, and their times."""
    batches = list(read_frames(paths, sampling=sampling, **options))  # type: ignore[arg-type]
    indices = [frame_index(frame) for batch in batches for frame in batch.pixels]
    return indices, [time for batch in batches for time in batch.pts_seconds.tolist()]


def remux(source: Path, target: Path, *, shift_ticks: int = 0, options: dict[str, str] | None = None) -> Path:
    """Copy the packets into another container, `shift_ticks` earlier."""
    with av.open(source) as reader, av.open(target, "w", options=options or {}) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.pts -= shift_ticks
                packet.dts -= shift_ticks
                packet.stream = stream
                writer.mux(packet)
    return target


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames at 25 fps, with B-frames and a keyframe every 12 frames."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    return write_video(path, num_frames=60, fps=25, options={"g": "12", "bf": "2"})


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("b-frames.mp4", "libx264", "yuv420p"),
        ("high.mp4", "libx264", "yuv444p10le"),
        ("b-frames.mkv", "libx264", "yuv420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
        ("vp8.webm", "libvpx", "yuv420p"),
        ("starts-late.ts", "libx264", "yuv420p"),
        ("starts-late.mpg", "mpeg2video", "yuv420p"),
        ("no-b-frames.avi", "mpeg4", "yuv420p"),
        ("wrong-times.avi", "libx264", "yuv420p"),
        ("full-range.avi", "mjpeg", "yuvj420p"),
        ("no-times.h264", "libx264", "yuv420p"),
        ("palette.gif", "gif", "rgb8"),
    ],
)
def test_every_frame_comes_once_in_order_with_its_time(
    tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    path = write_video(tmp_path / name, num_frames=30, fps=25, codec=codec, pix_fmt=pix_fmt)
    indices, times = read(path)
    assert indices == list(range(30))
    assert times == pytest.approx(np.arange(30) / 25)


def test_pixels_and_times_are_those_of_plain_pyav() -> None:
    path = DATA / "bigbuckbunny.mp4"
    batches = list(read_frames([path], sampling=Sampling(every=40)))
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    expected = [frame.to_ndarray(format="rgb24") for frame in frames[::40]]
    assert len(frames) == 132
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in batches]), np.stack(expected))
    assert [t for batch in batches for t in batch.pts_seconds] == [0.0, 1.6, 3.2, 4.8]


def test_batches_are_contiguous_uint8_of_at_most_batch_size(video: Path) -> None:
    batches: list[FrameBatch] = list(read_frames([video], sampling=ALL, batch_size=25))
    assert [batch.pixels.shape for batch in batches] == [(25, 64, 64, 3), (25, 64, 64, 3), (10, 64, 64, 3)]
    assert all(batch.pixels.dtype == np.uint8 and batch.pixels.flags.c_contiguous for batch in batches)
    assert all(batch.pts_seconds.dtype == np.float64 for batch in batches)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(every=7), list(range(0, 60, 7))),
        (Sampling(count=4), [7, 22, 37, 52]),
        (Sampling(fps=5), list(range(0, 60, 5))),
        (Sampling(fps=50), sorted([*range(60), *range(59)])),
    ],
)
def test_samplings_of_a_video(video: Path, sampling: Sampling, expected: list[int]) -> None:
    indices, times = read(video, sampling=sampling)
    assert indices == expected
    assert times == pytest.approx(np.array(expected) / 25)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 24, 35, 59])
def test_a_range_has_the_same_pixels_as_the_whole(
    video: Path, tmp_path: Path, suffix: str, start: int
) -> None:
    path = remux(video, tmp_path / f"video{suffix}")
    whole = np.concatenate([batch.pixels for batch in read_frames([path], sampling=ALL)])
    part = next(read_frames([path], sampling=ALL, start_seconds=start / 25, end_seconds=(start + 5) / 25))
    np.testing.assert_array_equal(part.pixels, whole[start : start + 5])
    assert part.pts_seconds == pytest.approx(np.arange(start, min(start + 5, 60)) / 25)


def test_variable_frame_rate_goes_by_presentation_time(tmp_path: Path) -> None:
    milliseconds = [0, 40, 80, 1000, 1040, 3000]
    path = write_video(tmp_path / "vfr.mkv", num_frames=6, pts=milliseconds, time_base=Fraction(1, 1000))
    assert read(path) == ([0, 1, 2, 3, 4, 5], [0.0, 0.04, 0.08, 1.0, 1.04, 3.0])
    assert read(path, sampling=Sampling(fps=2))[0] == [0, 2, 3, 4, 4, 4, 5]
    assert read(path, start_seconds=0.05, end_seconds=1.04)[0] == [2, 3]


def test_frames_cut_away_by_an_edit_list_do_not_count(video: Path, tmp_path: Path) -> None:
    with av.open(video) as container:
        ticks_per_frame = int(1 / (25 * container.streams.video[0].time_base))
    options = {"avoid_negative_ts": "disabled"}
    path = remux(video, tmp_path / "cut.mp4", shift_ticks=17 * ticks_per_frame, options=options)
    indices, times = read(path)
    assert indices == list(range(17, 60))
    assert times[:2] == [0.0, 0.04]
    assert read(path, start_seconds=1.0)[0] == list(range(42, 60))


def test_frames_before_the_first_keyframe_do_not_count(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.ts", num_frames=60, size=(256, 256), options={"g": "15"})
    path.write_bytes(path.read_bytes()[188 * 20 :])  # a recording that begins in the middle
    indices, times = read(path)
    assert indices == list(range(indices[0], 60))
    assert 0 < indices[0] <= 30
    assert times[0] == 0.0


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),  # clockwise, as phones record
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    ],
)
def test_frames_are_turned_as_a_viewer_shows_them(tmp_path: Path, matrix: tuple[int, ...], expected) -> None:  # type: ignore[no-untyped-def]
    path = write_video(tmp_path / "turned.mp4", num_frames=2, size=(32, 64), first_index=0xA35C)
    upright = next(read_frames([path], sampling=ALL)).pixels[0]
    content = bytearray(path.read_bytes())
    a, b, c, d = (65536 * value for value in matrix)
    offset = content.find(b"tkhd") + 4 + 4 + 20 + 16  # version 0 of the track header
    assert struct.unpack_from(">9i", content, offset) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, offset, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    np.testing.assert_array_equal(next(read_frames([path], sampling=ALL)).pixels[0], expected(upright))


def test_white_and_black_are_full_range(tmp_path: Path) -> None:
    path = write_video(tmp_path / "grey.mp4", num_frames=1, first_index=0x00FF, options={"qp": "0"})
    pixels = next(read_frames([path], sampling=ALL)).pixels[0]
    np.testing.assert_array_equal(pixels, index_frame(0x00FF))


def test_names_with_colons_and_spaces_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "take 1: http://x%03d.mp4".replace("/", "_"), num_frames=3)
    monkeypatch.chdir(tmp_path)
    (path,) = Path().glob("*.mp4")
    assert read(path)[0] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"hello " * 1000, bytes(range(256)) * 40])
def test_bytes_that_are_no_video_are_a_decode_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"broken\.mp4 can't be decoded"):
        read(path)


def test_a_file_without_a_video_stream_is_a_decode_error(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match="no video stream"):
        read(path)


@pytest.mark.parametrize(
    ("name", "codec"), [("video.mp4", "libx264"), ("video.mkv", "libx264"), ("video.avi", "mpeg4")]
)
def test_a_truncated_file_is_a_decode_error(tmp_path: Path, name: str, codec: str) -> None:
    suffix = ".avi" if codec == "mpeg4" else ".mp4"
    whole = write_video(tmp_path / f"whole{suffix}", num_frames=60, codec=codec)
    options = {"movflags": "faststart"} if name == "video.mp4" else {}  # else there is no index to go by
    path = remux(whole, tmp_path / name, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(DecodeError, match="it ends after"):
        read(path)


def test_damage_in_the_middle_says_how_many_frames_were_recovered(video: Path, tmp_path: Path) -> None:
    with av.open(video) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(video.read_bytes())
    position, size = packets[24]  # the third keyframe
    content[position : position + size] = b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="frames recovered") as caught:
        read(path)
    assert 0 < caught.value.num_recovered <= 24
    assert read(path, end_seconds=0.4)[0] == list(range(10))  # what comes before is as it was


def test_a_live_recording_of_unknown_size_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "live.mkv", num_frames=5)
    content = path.read_bytes()
    segment = content.find(b"\x18\x53\x80\x67") + 4
    path.write_bytes(content[:segment] + b"\x01" + b"\xff" * 7 + content[segment + 8 :])
    assert read(path)[0] == list(range(5))


def test_files_that_can_not_be_read_are_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.mp4")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.png")
    for name in ("bad.mp4", "bad.png"):
        (tmp_path / name).symlink_to("/proc/self/mem")  # reading its beginning is an I/O error
        with pytest.raises(OSError, match="Input/output error") as caught:
            read(tmp_path / name)
        assert not isinstance(caught.value, DecodeError)


def test_a_range_without_frames_is_a_decode_error(video: Path) -> None:
    with pytest.raises(DecodeError, match=r"shows no frame from 2\.4 to its end"):
        read(video, start_seconds=2.4)


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "frames", num_images=12)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    assert source_files(folder) == tuple(folder / f"{i}.png" for i in range(12))
    indices, times = read(folder, image_fps=4.0)
    assert indices == list(range(12))
    assert times == [i / 4 for i in range(12)]
    assert read(folder, image_fps=4.0, start_seconds=1, sampling=Sampling(every=3))[0] == [4, 7, 10]
    assert read(folder, image_fps=4.0, sampling=Sampling(fps=8), start_seconds=2.5)[0] == [10, 10, 11]


def test_an_image_is_one_frame_and_several_keep_their_given_order(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{name}.png", index=i) for i, name in enumerate("zax")]
    assert read(paths[1]) == ([1], [0.0])
    assert read(*paths) == ([0, 1, 2], [0.0, 1.0, 2.0])
    assert source_files(paths[0]) == (paths[0],)


def test_images_of_another_size_begin_another_batch(tmp_path: Path) -> None:
    sizes = [(32, 32), (32, 32), (64, 32), (32, 32)]
    paths = [write_image(tmp_path / f"{i}.png", index=i, size=size) for i, size in enumerate(sizes)]
    batches = list(read_frames(paths, sampling=ALL))
    assert [batch.pixels.shape[:3] for batch in batches] == [(2, 32, 32), (1, 64, 32), (1, 32, 32)]
    assert [t for batch in batches for t in batch.pts_seconds] == [0.0, 1.0, 2.0, 3.0]


def test_an_image_is_what_a_viewer_shows(tmp_path: Path) -> None:
    def pixels(name: str) -> np.ndarray:
        return next(read_frames([tmp_path / name], sampling=ALL)).pixels[0]

    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(colours)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(pixels("turned.png"), np.rot90(colours, -1))

    alpha = np.array([[0, 255, 128, 0, 255, 64]] * 4, dtype=np.uint8)
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "transparent.png")
    on_black = colours * (alpha[..., None] / 255)
    np.testing.assert_allclose(pixels("transparent.png"), on_black, atol=1)

    grey = np.array([[0, 1, 128, 129, 32768, 65535]] * 4, dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(pixels("deep.png")[0, :, 0], np.round(grey[0] / 257))

    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(pixels("grey.png"), np.repeat(colours[..., :1], 3, axis=2))

    image.quantize(24).save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as palette:
        np.testing.assert_array_equal(pixels("palette.png"), np.asarray(palette.convert("RGB")))


def test_a_broken_image_is_a_decode_error_with_the_number_recovered(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "frames", num_images=3)
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DecodeError, match=r"2\.png can't be decoded as an image") as caught:
        read(folder)
    assert caught.value.num_recovered == 2
    (folder / "0.png").write_text("hello")
    with pytest.raises(DecodeError, match=r"0\.png"):
        read(folder)


def test_sources_that_are_no_clip_are_decode_errors(video: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DecodeError, match="has no images"):
        read(tmp_path / "empty")
    with pytest.raises(DecodeError, match="one video or several images"):
        read(video, video)


def test_reading_may_stop_early(video: Path) -> None:
    frames = read_frames([video], sampling=ALL, batch_size=1)
    assert frame_index(next(frames).pixels[0]) == 0
    frames.close()  # type: ignore[attr-defined]
