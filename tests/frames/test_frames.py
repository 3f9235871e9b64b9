"""Frames: real files, whose frames show their own index."""

import contextlib
import dataclasses
import gc
import struct
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.contract import Sampling
from pipeline.errors import DecodeError
from pipeline.frames import ClipInfo, FrameBatch, probe, read_frames
from pipeline.frames.video_index import begins_as_told, read_index
from pipeline.manifest import source_files
from pipeline.settings.extract import Limits
from tests.support.little_memory import little_memory
from tests.support.media import (
    ENCODER_OPTIONS,
    frame_index,
    index_frame,
    write_image,
    write_image_folder,
    write_video,
)

DATA = Path(__file__).parents[1] / "data"
ALL = Sampling()


def read(*paths: Path, sampling: Sampling = ALL, **options: float | Limits) -> tuple[list[int], list[float]]:
    """The indices that the frames show, and their times."""
    batches = list(read_frames(paths, sampling=sampling, **options))  # type: ignore[arg-type]
    indices = [frame_index(frame) for batch in batches for frame in batch.pixels]
    return indices, [time for batch in batches for time in batch.frame_seconds.tolist()]


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
    ("codec", "suffixes"),
    [
        ("libx264", "mp4 mkv mov avi ts h264"),  # in AVI with wrong times, raw without any
        ("libx265", "mp4 mkv mov ts"),
        ("libvpx-vp9", "mp4 mkv webm avi"),
        ("libsvtav1", "mp4 mkv webm avi"),
        ("mpeg4", "mp4 mkv mov avi"),
        ("mjpeg", "mp4 mkv mov avi"),
        ("libvpx", "webm"),
        ("mpeg2video", "mpg ts"),
        ("wmv2", "wmv"),
        ("flv1", "flv"),
        ("gif", "gif"),
    ],
)
def test_every_frame_comes_once_in_order_with_its_time(tmp_path: Path, codec: str, suffixes: str) -> None:
    pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
    for suffix in suffixes.split():
        path = tmp_path / f"video.{suffix}"
        write_video(
            path, num_frames=30, fps=25, codec=codec, pix_fmt=pix_fmt, options=ENCODER_OPTIONS.get(codec)
        )
        indices, times = read(path)
        assert indices == list(range(30)), suffix
        assert times == pytest.approx(np.arange(30) / 25), suffix
        assert read(path, start_seconds=0.52, end_seconds=0.72)[0] == [13, 14, 15, 16, 17], suffix


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("high.mp4", "libx264", "yuv444p10le"),
        ("odd.mp4", "libx264", "yuv444p"),
        ("odd.webm", "libvpx-vp9", "yuv420p"),
        ("odd.avi", "mpeg4", "yuv420p"),
        ("odd.mkv", "mjpeg", "yuvj420p"),
    ],
)
def test_odd_sizes_and_high_bit_depths_are_whole(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = write_video(tmp_path / name, num_frames=9, size=(63, 61), codec=codec, pix_fmt=pix_fmt)
    batch = next(read_frames([path], sampling=ALL))
    assert batch.pixels.shape == (9, 63, 61, 3)
    assert [frame_index(frame) for frame in batch.pixels] == list(range(9))


def test_pixels_and_times_are_those_of_plain_pyav() -> None:
    path = DATA / "bigbuckbunny.mp4"
    batches = list(read_frames([path], sampling=Sampling(every=40)))
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    expected = [frame.to_ndarray(format="rgb24") for frame in frames[::40]]
    assert len(frames) == 132
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in batches]), np.stack(expected))
    assert [t for batch in batches for t in batch.frame_seconds] == [0.0, 1.6, 3.2, 4.8]


def test_batches_are_contiguous_uint8_of_at_most_batch_size(video: Path) -> None:
    batches: list[FrameBatch] = list(read_frames([video], sampling=ALL, batch_size=25))
    assert [batch.pixels.shape for batch in batches] == [(25, 64, 64, 3), (25, 64, 64, 3), (10, 64, 64, 3)]
    assert all(batch.pixels.dtype == np.uint8 and batch.pixels.flags.c_contiguous for batch in batches)
    assert all(batch.frame_seconds.dtype == np.float64 for batch in batches)


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
    assert part.frame_seconds == pytest.approx(np.arange(start, min(start + 5, 60)) / 25)


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
def test_a_truncated_file_is_a_decode_error_after_what_could_be_recovered(
    tmp_path: Path, name: str, codec: str
) -> None:
    suffix = ".avi" if codec == "mpeg4" else ".mp4"
    whole = write_video(tmp_path / f"whole{suffix}", num_frames=60, codec=codec)
    options = {"movflags": "faststart"} if name == "video.mp4" else {}  # else there is no index to go by
    path = remux(whole, tmp_path / name, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(DecodeError, match="it ends after") as caught:
        read(path)
    assert 10 <= caught.value.num_recovered < 60


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
    assert [t for batch in batches for t in batch.frame_seconds] == [0.0, 1.0, 2.0, 3.0]


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
    with pytest.raises(DecodeError, match=r"2\.png can't be decoded") as caught:
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


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed.mp4", "libx264", {"g": "12", "bf": "2"}),
        ("open.mkv", "libx264", {"g": "12", "bf": "2", "x264-params": "open-gop=1"}),
        ("open.mp4", "libx265", ENCODER_OPTIONS["libx265"]),  # open by default
        ("refresh.mp4", "libx264", {"g": "12", "x264-params": "intra-refresh=1"}),  # no clean keyframes
        ("refresh.ts", "libx264", {"g": "12", "x264-params": "intra-refresh=1"}),
        ("program.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
        ("av1.webm", "libsvtav1", ENCODER_OPTIONS["libsvtav1"]),
        ("counted.avi", "mpeg4", {"g": "12", "bf": "2"}),
    ],
)
def test_frames_far_apart_have_the_same_pixels_as_the_whole(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    """Decoding skips what lies between them."""
    path = write_video(tmp_path / name, num_frames=150, fps=25, codec=codec, options=options)
    whole = np.concatenate([batch.pixels for batch in read_frames([path], sampling=ALL)])
    assert [frame_index(frame) for frame in whole] == list(range(150))
    for sampling in (Sampling(count=4), Sampling(every=37), Sampling(fps=0.7)):
        batches = list(read_frames([path], sampling=sampling, start_seconds=0.3))
        times = np.concatenate([batch.frame_seconds for batch in batches])
        expected = whole[np.rint(times * 25).astype(int)]
        np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in batches]), expected)


@pytest.mark.parametrize("count", [0, 1, 1_000_000])
def test_frame_counts_in_headers_do_not_matter(tmp_path: Path, count: int) -> None:
    path = write_video(tmp_path / "video.avi", num_frames=20, fps=25, codec="mpeg4")
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.find(b"avih") + 8 + 16, count)  # dwTotalFrames
    struct.pack_into("<I", content, content.find(b"strh") + 8 + 32, count)  # dwLength
    path.write_bytes(content)
    assert read(path)[0] == list(range(20))


def test_fragmented_recordings_without_any_count_are_read(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", num_frames=60, fps=25, options={"g": "12", "bf": "2"})
    path = remux(whole, tmp_path / "live.mp4", options={"movflags": "frag_keyframe+empty_moov"})
    assert read(path)[0] == list(range(60))
    assert read(path, start_seconds=1.0, end_seconds=1.12)[0] == [25, 26, 27]
    assert read(remux(whole, tmp_path / "live.mkv", options={"live": "1"}))[0] == list(range(60))
    path = write_video(tmp_path / "pipe.avi", num_frames=20, codec="mpeg4")
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff" * 4  # the size stays unknown when nobody can seek back
    path.write_bytes(content)
    assert read(path)[0] == list(range(20))


def test_transparent_video_is_on_black(tmp_path: Path) -> None:
    """Players differ; images are on black as well."""
    path = tmp_path / "video.mov"
    rgba = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("png", rate=10, options={})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "rgba"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(stream.encode(None))
    expected = np.round(rgba[..., :3] * (rgba[..., 3:] / 255))
    np.testing.assert_array_equal(next(read_frames([path], sampling=ALL)).pixels[0], expected)

    image = Image.new("RGBA", (16, 16), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    image.save(tmp_path / "half.gif", transparency=0)
    pixels = next(read_frames([tmp_path / "half.gif"], sampling=ALL)).pixels
    assert pixels[0, 0, [0, 15]].tolist() == [[0, 0, 0], [200, 0, 0]]


def test_tags_in_an_old_encoding_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "video.avi"
    write_video(path, num_frames=3, codec="mpeg4")
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1  # the tag with the encoder's name
    path.write_bytes(content.replace(b"Lavf", "Käf".encode("latin-1") + b"e"))
    assert read(path)[0] == [0, 1, 2]


def test_a_codec_that_ffmpeg_does_not_know_is_a_decode_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", num_frames=3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(DecodeError, match="its codec is unknown"):
        read(path)


def test_a_stream_that_appears_late_does_no_harm(tmp_path: Path) -> None:
    """PyAV 18 flushes it without having heard of it: IndexError."""
    path = write_video(tmp_path / "video.ts", num_frames=30, options={"bf": "0"})
    content = bytearray(path.read_bytes())
    starts = [at for at in range(0, len(content), 188) if content[at + 1 : at + 3] == b"\x41\x00"]
    content[starts[-1] + 1] = 0x5F  # the last frame begins in another stream
    path.write_bytes(content)
    for _ in range(20):
        assert read(path)[0] == list(range(29))


def test_packets_that_are_fields_are_not_taken_for_frames(tmp_path: Path) -> None:
    """Interlaced H.264 of cameras and television; no encoder here makes it, so its index is made up."""
    path = write_video(tmp_path / "video.ts", num_frames=30)
    index = read_index(path, Limits())
    assert not index.counted
    assert begins_as_told(path, index, Limits())
    fields = dataclasses.replace(index, keys=np.sort(np.concatenate([index.keys, index.keys + 1800])))
    assert not begins_as_told(path, fields, Limits())


def test_a_video_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", num_frames=5)
    assert read(path)[0] == list(range(5))
    write_video(path, num_frames=9, first_index=100)
    assert read(path)[0] == list(range(100, 109))


def test_what_was_decoded_before_damage_is_returned_before_the_error(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "frames", num_images=5)
    (folder / "3.png").write_text("hello")
    frames = read_frames([folder], sampling=ALL)
    assert [frame_index(frame) for frame in next(frames).pixels] == [0, 1, 2]
    with pytest.raises(DecodeError, match=r"3\.png can't be decoded: .* \(3 frames recovered\)"):
        next(frames)


def giant_png() -> bytes:
    parts = (b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def giant_webp(folder: Path) -> bytes:
    image = write_image(folder / "small.webp", index=1).read_bytes()[12:]
    canvas = b"VP8X" + struct.pack("<I4x", 10) + struct.pack("<I", 59999)[:3] * 2
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(image)) + b"WEBP" + canvas + image


def giant_container(folder: Path) -> bytes:
    """AVI of uncompressed frames whose header says 60000 x 60000."""
    path = write_video(folder / "small.avi", num_frames=2, codec="rawvideo", size=(16, 16))
    content = bytearray(path.read_bytes())
    header = content.find(b"strf") + 8
    assert struct.unpack_from("<II", content, header + 4) == (16, 16)
    struct.pack_into("<II", content, header + 4, 60000, 60000)
    return bytes(content)


def giant_codec(folder: Path, suffix: str) -> bytes:
    """The container says 64 x 64, but the JPEG of the second frame 60000 x 60000."""
    path = folder / f"small.{suffix}"
    content = bytearray(write_video(path, num_frames=2, codec="mjpeg", pix_fmt="yuvj420p").read_bytes())
    start_of_frame = content.rfind(b"\xff\xc0\x00\x11\x08")
    assert struct.unpack_from(">HH", content, start_of_frame + 5) == (64, 64)
    struct.pack_into(">HH", content, start_of_frame + 5, 60000, 60000)
    return bytes(content)


def test_frames_of_gigabytes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    files = {
        "a.png": giant_png(),
        "a.webp": giant_webp(tmp_path),
        "a.ppm": b"P6 60000 60000 255\n",
        "header.avi": giant_container(tmp_path),
        "a.mkv": giant_codec(tmp_path, "mkv"),
        "a.avi": giant_codec(tmp_path, "avi"),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        with little_memory(), pytest.raises(DecodeError, match="can't be decoded") as caught:
            read(path)
        if name in ("a.png", "a.ppm"):  # FFmpeg and libwebp refuse in their words
            assert "60000 x 60000 pixels: above the limit max_frame_pixels, 100000000" in str(caught.value), (
                name
            )
            assert "raise the limit" in str(caught.value)


def test_limits_are_inclusive_and_may_be_lifted(tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mp4", num_frames=6, size=(48, 64))
    avi = write_video(tmp_path / "video.avi", num_frames=6, codec="mpeg4", size=(48, 64))
    folder = write_image_folder(tmp_path / "frames", num_images=6, size=(48, 64))
    for path in (video, avi, folder):
        assert len(read(path, limits=Limits(max_frame_pixels=48 * 64, max_source_frames=6))[0]) == 6
        with pytest.raises(DecodeError, match=r"64 x 48 pixels: above the limit max_frame_pixels, 3071"):
            read(path, limits=Limits(max_frame_pixels=48 * 64 - 1))
        with pytest.raises(DecodeError, match=r"6 frames: above the limit max_source_frames, 5"):
            read(path, limits=Limits(max_source_frames=5))
        assert len(read(path, limits=Limits(max_frame_pixels=None, max_source_frames=None))[0]) == 6


def test_a_time_that_is_years_ahead_does_not_repeat_a_frame_a_million_times(tmp_path: Path) -> None:
    times = {"pts": [0, 40, 10**12], "time_base": Fraction(1, 1000)}
    path = write_video(tmp_path / "video.mkv", num_frames=3, **times)  # type: ignore[arg-type]
    assert read(path)[0] == [0, 1, 2]
    with little_memory(), pytest.raises(DecodeError, match="25000000000 frames: above"):
        read(path, sampling=Sampling(fps=25))


def test_a_short_clip_of_a_long_source_is_within_the_limits(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mkv", num_frames=3, pts=[0, 40, 50000], time_base=Fraction(1, 1000))
    limits = Limits(max_source_frames=100)
    assert read(path, sampling=Sampling(fps=25), end_seconds=0.08, limits=limits)[0] == [0, 1]
    with pytest.raises(DecodeError, match="1250 frames: above"):
        read(path, sampling=Sampling(fps=25), limits=limits)


def test_pil_alone_would_warn_of_images_that_the_limits_allow(tmp_path: Path) -> None:
    """Its warning is an error under `python -W error`, and above twice its limit it refuses."""
    path = tmp_path / "large.png"
    Image.new("1", (10000, 9000)).save(path)
    info = probe([path], sampling=ALL)
    assert (info.height, info.width) == (9000, 10000)


@pytest.mark.parametrize(
    "name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.webm", "a.png", "a.jpg", "a.webp", "a.tif"]
)
def test_damaged_bytes_give_frames_or_a_decode_error_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix in (".png", ".jpg", ".webp", ".tif"):
        write_image(path, index=0xA35C)
    else:
        codec = {".avi": "mpeg4", ".webm": "libvpx-vp9"}.get(path.suffix, "libx264")
        write_video(path, num_frames=8, codec=codec, size=(32, 32), options=ENCODER_OPTIONS[codec])
    whole = path.read_bytes()

    @settings(deadline=None, max_examples=60, derandomize=True)
    @given(
        st.integers(0, len(whole)),
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4),
    )
    def damage(size_bytes: int, changes: list[tuple[int, int]]) -> None:
        content = bytearray(whole)
        for offset, value in changes:
            content[offset] = value
        path.write_bytes(content[:size_bytes] if not changes else content)
        with warnings.catch_warnings(), contextlib.suppress(DecodeError):
            warnings.simplefilter("ignore", UserWarning)  # of PIL, about tags
            read(path, sampling=Sampling(fps=5))

    damage()


@pytest.mark.parametrize(
    "content", [b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x00", b"RIFF", b"\x89PNG\r\n\x1a\n"]
)
@pytest.mark.parametrize("name", ["a.mkv", "a.png"])
def test_a_file_that_ends_in_its_first_bytes_is_a_decode_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError, match="can't be decoded"):
        read(tmp_path / name)


def test_images_of_every_mode_are_what_a_viewer_shows(tmp_path: Path) -> None:
    def pixels(name: str) -> np.ndarray:
        return next(read_frames([tmp_path / name], sampling=ALL)).pixels[0]

    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (4, 6, 1), dtype=np.uint8)

    Image.fromarray(np.dstack([colours[..., :1], alpha])).save(tmp_path / "grey-alpha.png")
    expected = np.round(colours[..., :1] * (alpha / 255)).repeat(3, axis=2)
    np.testing.assert_array_equal(pixels("grey-alpha.png"), expected)

    palette = Image.fromarray(colours).quantize(24)
    opaque = np.asarray(palette.convert("RGB")).copy()
    palette.save(tmp_path / "palette.png", transparency=5)
    opaque[np.asarray(palette) == 5] = 0
    np.testing.assert_array_equal(pixels("palette.png"), opaque)

    Image.fromarray(colours).save(tmp_path / "key.png", transparency=tuple(colours[1, 2].tolist()))
    keyed = np.where((colours == colours[1, 2]).all(axis=2, keepdims=True), 0, colours)
    np.testing.assert_array_equal(pixels("key.png"), keyed)

    Image.fromarray(colours[..., 0] > 127).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(pixels("bits.png")[..., 1], np.where(colours[..., 0] > 127, 255, 0))

    cmyk = Image.fromarray(np.dstack([colours, alpha]), mode="CMYK")
    cmyk.save(tmp_path / "cmyk.tif")
    ink = (255 - colours.astype(float)) * (255 - alpha.astype(float)) / 255
    np.testing.assert_allclose(pixels("cmyk.tif"), ink, atol=1)
    cmyk.save(tmp_path / "cmyk.jpg", quality=100)
    with Image.open(tmp_path / "cmyk.jpg") as image:
        np.testing.assert_array_equal(pixels("cmyk.jpg"), np.asarray(image.convert("RGB")))

    deep = np.array([[0, 1, 128, 129, 32768, 65535]] * 4, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(pixels("deep.tif")[0, :, 0], np.round(deep[0] / 257))

    Image.fromarray(colours[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DecodeError, match="floats, whose range is unknown"):
        pixels("float.tif")


def test_of_several_pages_the_first_is_the_image(tmp_path: Path) -> None:
    pages = [Image.fromarray(index_frame(index)) for index in (7, 8)]
    for name in ("pages.tif", "stereo.mpo"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    (tmp_path / "stereo.mpo").rename(tmp_path / "stereo.jpg")  # as phones and cameras name them
    assert read(tmp_path / "pages.tif") == ([7], [0.0])
    assert read(tmp_path / "stereo.jpg") == ([7], [0.0])


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_is_a_video_whose_frames_have_durations(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frames = [Image.fromarray(index_frame(index)) for index in range(5)]
    options = {"lossless": True} if name == "a.webp" else {}
    durations = [100, 100, 400, 100, 100]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, **options)
    assert read(path) == ([0, 1, 2, 3, 4], pytest.approx([0.0, 0.1, 0.2, 0.6, 0.7]))
    assert read(path, sampling=Sampling(fps=5))[0] == [0, 2, 2, 3]
    assert read(path, start_seconds=0.15, end_seconds=0.65)[0] == [2, 3]
    if name != "a.gif":  # in a list it is an image like the others
        still = write_image(tmp_path / "still.png", index=9)
        assert read(path, still)[0] == [0, 9]


def test_probing_says_what_reading_will_give(video: Path, tmp_path: Path) -> None:
    assert probe([video], sampling=ALL) == ClipInfo(num_frames=60, seconds=2.36, height=64, width=64)
    info = probe([video], sampling=Sampling(fps=50), start_seconds=1.0, end_seconds=1.5)
    assert (info.num_frames, info.seconds) == (25, pytest.approx(0.48))
    folder = write_image_folder(tmp_path / "frames", num_images=4, size=(32, 48))
    info = probe([folder], sampling=ALL, image_fps=2.0)
    assert info == ClipInfo(num_frames=4, seconds=1.5, height=32, width=48)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DecodeError, match=r"empty\.mp4 can't be decoded"):
        probe([tmp_path / "empty.mp4"], sampling=ALL)
    with pytest.raises(DecodeError, match="shows no frame"):
        probe([video], sampling=ALL, start_seconds=99)


def test_a_frame_is_freed_as_soon_as_it_is_read(tmp_path: Path) -> None:
    """What only the garbage collector frees takes memory for hundreds of frames."""

    def num_alive() -> int:
        return sum(type(each) is av.VideoFrame for each in gc.get_objects())

    path = write_video(tmp_path / "a.mp4", num_frames=30)
    before = num_alive()
    gc.disable()
    try:
        assert sum(len(batch.pixels) for batch in read_frames([path], sampling=Sampling())) == 30
        assert num_alive() == before
    finally:
        gc.enable()
