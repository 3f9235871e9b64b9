"""The decoder's output is the truth: files whose headers, packets or times say something else."""

import contextlib
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.contract import Sampling
from pipeline.errors import DecodeError
from pipeline.frames import probe, read_frames
from pipeline.frames.video_index import read_index
from pipeline.settings.extract import Limits
from tests.frames.test_frames import ALL, read, remux
from tests.support.media import ENCODER_OPTIONS, frame_index, write_video
from tests.support.odd_videos import (
    add_stream,
    copy_of,
    encode,
    without_first_packets,
    write_message_samples,
    write_motion_jpeg,
    write_not_coded,
    write_repeated_time,
    write_transparent,
    write_undeclared_reorder,
)

SAMPLINGS = [Sampling(count=4), Sampling(every=40), Sampling(fps=5), Sampling(max_frames=7)]


def decoded_alone(path: Path) -> list[float]:
    """The times of all frames of PyAV's plain loop, from the first, in seconds."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = []
        for packet in container.demux(stream):
            try:
                frames += packet.decode()
            except av.error.InvalidDataError:  # as players do, go on
                continue
        return [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]


def check_all_ways_of_reading(path: Path, indices: list[int], times: list[float]) -> None:
    """Read everything, by samplings and by ranges, against what the frames are known to be."""
    assert read(path) == (indices, pytest.approx(times))
    count = len(indices)
    for sampling in SAMPLINGS:
        found, found_times = read(path, sampling=sampling)
        assert found_times == pytest.approx([times[indices.index(i)] for i in found])
    assert read(path, sampling=Sampling(count=4))[0] == [indices[(2 * k + 1) * count // 8] for k in range(4)]
    for every in (2, 3, 7, 50):
        found = read(path, sampling=Sampling(every=every))
        assert found == (indices[::every], pytest.approx(times[::every])), every
    for start, end in ((0.0, 0.5), (0.3, 0.9), (times[-1] - 0.2, times[-1] + 1)):
        expected = [i for i, t in zip(indices, times, strict=True) if start <= t < end]
        assert read(path, start_seconds=start, end_seconds=end)[0] == expected
        sparse = read(path, sampling=Sampling(every=3), start_seconds=start, end_seconds=end)
        assert sparse[0] == expected[::3]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_samples_that_hold_messages_only_are_no_frames(tmp_path: Path, suffix: str) -> None:
    path = write_message_samples(tmp_path / f"sei.{suffix}", after=(0, 30, 31, 59))
    times = decoded_alone(path)  # in a transport stream, a message takes its time along to the next picture
    assert times == pytest.approx([i / 25 for i in range(60)], abs=0.021)
    check_all_ways_of_reading(path, list(range(60)), times)
    assert read(path, sampling=Sampling(every=40))[0] == [0, 40]
    assert probe([path], sampling=ALL).num_frames == 60


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_pictures_that_are_not_coded_are_no_frames(tmp_path: Path, suffix: str) -> None:
    path = write_not_coded(tmp_path / f"skipped.{suffix}")
    indices = [i for i in range(30) if i not in (10, 20)]
    check_all_ways_of_reading(path, indices, [i / 25 for i in indices])


@pytest.mark.parametrize("every", [2, 3, 7, 50, 100])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_every_nth_frame_is_the_decoders_where_a_packet_is_taken_for_a_picture(
    tmp_path: Path, suffix: str, every: int
) -> None:
    path = write_not_coded(tmp_path / f"stuffed.{suffix}", at=(30, 75, 133), num_frames=200, num_stuffed=20)
    indices = [i for i in range(200) if i not in (30, 75, 133)]
    assert len(read_index(path, Limits()).keys) == 200  # the packets tell of frames that there are not
    assert len(decoded_alone(path)) == 197
    assert read(path, sampling=Sampling(every=every)) == (
        indices[::every],
        pytest.approx([i / 25 for i in indices[::every]]),
    )
    later = [i for i in indices if i >= 50]
    assert read(path, sampling=Sampling(every=every), start_seconds=2.0)[0] == later[::every]


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_frames_that_the_decoder_drops_as_it_learns_their_order_are_not_damage(
    tmp_path: Path, suffix: str
) -> None:
    path = write_undeclared_reorder(tmp_path / f"reorder.{suffix}")
    times = decoded_alone(path)
    assert len(times) == 119
    indices, found = read(path)
    assert found == pytest.approx(times)
    assert indices == [round(t * 25) for t in times]
    for every in (2, 3, 7, 50):
        assert read(path, sampling=Sampling(every=every))[0] == indices[::every]
    assert read(path, start_seconds=2.0, end_seconds=4.0)[0] == [i for i in indices if 50 <= i < 100]
    missing = (set(range(indices[-1] + 1)) - set(indices)).pop()
    shown = [i - (i == missing) for i in range(indices[-1] + 1)]  # the frame before it stays on screen
    assert read(path, sampling=Sampling(fps=25))[0] == shown
    assert read(path, sampling=Sampling(fps=12.5))[0] == shown[::2]


def test_a_choice_by_the_number_of_frames_is_exact_whatever_may_be_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.frames.video._HELD_BYTES", 20 * 64 * 64 * 3)
    path = write_undeclared_reorder(tmp_path / "reorder.mkv")
    indices = read(path)[0]
    for count in (4, 30, 119):
        expected = [indices[(2 * k + 1) * len(indices) // (2 * count)] for k in range(count)]
        assert read(path, sampling=Sampling(count=count))[0] == expected


@pytest.mark.parametrize("num_packets", [5, 12, 20])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("kind", ["intra-refresh=1:repeat-headers=1", "open-gop=1:repeat-headers=1"])
def test_a_recording_begins_where_the_decoder_has_a_whole_picture(
    tmp_path: Path, kind: str, suffix: str, num_packets: int
) -> None:
    options = {"g": "12", "bf": "2", "x264-params": kind}
    whole = write_video(tmp_path / f"whole.{suffix}", num_frames=100, fps=25, options=options)
    path = without_first_packets(whole, tmp_path / f"cut.{suffix}", num_packets=num_packets)
    num_frames = len(decoded_alone(path))
    assert num_frames < 100 - num_packets
    indices = list(range(100 - num_frames, 100))
    check_all_ways_of_reading(path, indices, [i / 25 for i in range(num_frames)])


def test_packets_before_the_first_keyframe_are_not_damage_where_the_decoder_refuses_them(
    tmp_path: Path,
) -> None:
    whole = write_video(
        tmp_path / "whole.webm",
        num_frames=60,
        fps=25,
        codec="libvpx-vp9",
        options=ENCODER_OPTIONS["libvpx-vp9"],
    )
    path = without_first_packets(whole, tmp_path / "cut.webm", num_packets=5)
    check_all_ways_of_reading(path, list(range(12, 60)), [i / 25 for i in range(48)])


def test_one_repeated_time_moves_no_other(tmp_path: Path) -> None:
    path = write_repeated_time(tmp_path / "vfr.mkv")
    times = [i / 10 if i < 40 else 4 + (i - 40) / 40 for i in range(80)]
    check_all_ways_of_reading(path, list(range(80)), times)


def test_joined_recordings_go_on_where_the_clock_is_set_back(tmp_path: Path) -> None:
    parts = [
        write_video(tmp_path / "a.ts", num_frames=60, fps=25),
        write_video(tmp_path / "b.ts", num_frames=60, fps=10, first_index=60),
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    indices, times = read(path)
    assert indices == list(range(120))
    assert times == pytest.approx([i / 25 if i < 60 else 2.4 + (i - 60) / 10 for i in range(120)])
    assert read(path, sampling=Sampling(count=5))[0] == [12, 36, 60, 84, 108]


def with_riff_size(source: Path, target: Path, size: int) -> Path:
    content = bytearray(source.read_bytes())
    content[4:8] = size.to_bytes(4, "little")
    target.write_bytes(content)
    return target


def with_segment_size_off(source: Path, target: Path, *, by: int) -> Path:
    content = bytearray(source.read_bytes())
    at = content.find(b"\x18\x53\x80\x67") + 4
    assert content[at] == 1  # a size of seven bytes follows
    size = int.from_bytes(content[at + 1 : at + 8], "big") + by
    content[at + 1 : at + 8] = size.to_bytes(7, "big")
    target.write_bytes(content)
    return target


def test_a_size_in_a_header_does_not_outweigh_a_complete_decode(tmp_path: Path) -> None:
    avi = write_video(tmp_path / "whole.avi", num_frames=50, fps=25, codec="mpeg4")
    mkv = write_video(tmp_path / "whole.mkv", num_frames=50, fps=25)
    num_bytes = avi.stat().st_size
    for path in (
        with_riff_size(avi, tmp_path / "off.avi", num_bytes),
        with_riff_size(avi, tmp_path / "placeholder.avi", 0x7FFFFFFF),
        with_segment_size_off(mkv, tmp_path / "off.mkv", by=8),
    ):
        assert read(path)[0] == list(range(50)), path.name
        assert read(path, sampling=Sampling(count=2))[0] == [12, 37], path.name


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "mpeg4"), ("mkv", "libx264"), ("mp4", "libx264")])
def test_a_file_that_lost_frames_is_named_with_as_many_as_there_are(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    """Cut byte for byte from its end: it is whole as long as all frames come, and named from then on."""
    options = ENCODER_OPTIONS[codec]
    whole = write_video(tmp_path / f"whole.{suffix}", num_frames=60, fps=25, codec=codec, options=options)
    if suffix == "mp4":  # the table of contents first, or nothing is left to go by
        whole = remux(whole, tmp_path / "front.mp4", options={"movflags": "faststart"})
    content = whole.read_bytes()
    path = tmp_path / f"cut.{suffix}"
    counts = []
    for num_lost in (1, 20, 100, 300, 700, 1000, 1200):
        path.write_bytes(content[:-num_lost])
        frames = read_frames([path], sampling=ALL, batch_size=1)
        indices: list[int] = []
        with contextlib.suppress(DecodeError):
            for batch in frames:
                indices += read_indices(batch.pixels)
        counts.append(len(indices))
        if len(indices) < 60:
            with pytest.raises(
                DecodeError, match=rf"(it ends|is damaged).*\({len(indices)} frames recovered\)"
            ):
                read(path)
            with pytest.raises(
                DecodeError, match=rf"(it ends|is damaged).*\({len(indices)} frames recovered\)"
            ):
                probe([path], sampling=ALL)
        else:
            assert read(path)[0] == list(range(60))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < 60


def read_indices(pixels: np.ndarray) -> list[int]:
    return [frame_index(frame) for frame in pixels]


def test_a_clip_that_ends_before_the_damage_is_whole(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.avi", num_frames=60, fps=25, codec="mpeg4")
    path = tmp_path / "cut.avi"
    path.write_bytes(whole.read_bytes()[:-1000])
    assert read(path, start_seconds=0.4, end_seconds=0.8)[0] == list(range(10, 20))
    with pytest.raises(DecodeError, match="it ends after"):
        read(path, start_seconds=0.4, end_seconds=3.0)


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_program_streams_are_not_sought_in(tmp_path: Path, codec: str) -> None:
    """After a seek, their demuxer gives times to other pictures."""
    path = write_video(
        tmp_path / "program.mpg", num_frames=200, fps=25, codec=codec, options={"g": "12", "bf": "2"}
    )
    indices, times = read(path)
    assert indices == list(range(200))
    check_all_ways_of_reading(path, indices, times)  # the times are those that its muxer gave
    assert read(path, sampling=Sampling(count=4))[0] == [25, 75, 125, 175]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_packets_without_a_picture_are_known_in_mpeg_2(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"user_data.{suffix}"
    with av.open(path, "w") as container:
        stream = add_stream(container, "mpeg2video", g="12", bf="0", ticks_per_second=25)
        for index, packet in enumerate(encode(stream, 200)):
            packet.pts, packet.dts, packet.time_base = 2 * index, 2 * index, Fraction(1, 50)
            user_data = copy_of(packet, b"\0\0\1\xb2" + bytes(range(1, 40)), pts=2 * index + 1)
            container.mux(packet)
            if index == 30:
                container.mux(user_data)
    assert read(path, sampling=Sampling(every=40))[0] == [0, 40, 80, 120, 160]
    assert read(path, sampling=Sampling(count=4))[0] == [25, 75, 125, 175]
    assert probe([path], sampling=ALL).num_frames == 200


@pytest.mark.parametrize("wrong_seconds", [11.021, 30.0])
def test_one_time_far_ahead_in_what_is_skipped_moves_no_choice(tmp_path: Path, wrong_seconds: float) -> None:
    path = tmp_path / "ahead.mp4"
    with av.open(path, "w") as container:
        stream = add_stream(container, "libx264", ticks_per_second=1000, g="12", bf="0")
        packets = encode(stream, 400, ticks=lambda i: 40 * i)
        packets[150].pts = int(wrong_seconds * 1000)
        for packet in packets:
            container.mux(packet)
    assert read(path, sampling=Sampling(every=40)) == (
        list(range(0, 400, 40)),
        pytest.approx(np.arange(10) * 1.6),
    )
    assert read(path, sampling=Sampling(count=1))[0] == [200]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_motion_jpeg_whose_frames_have_exif_is_turned_as_it_says(
    tmp_path: Path, orientation: int, turns: int
) -> None:
    path = write_motion_jpeg(tmp_path / "exif.avi", index=0xA35C, orientation=orientation)
    (batch,) = read_frames([path], sampling=ALL)
    assert frame_index(np.rot90(batch.pixels[0], -turns)) == 0xA35C
    assert len(batch.pixels) == 3


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_webm_is_on_black(tmp_path: Path, codec: str) -> None:
    webm = write_transparent(tmp_path / "alpha.webm", codec=codec)
    with av.open(webm) as reader, av.open(tmp_path / "alpha.mkv", "w") as writer:  # its tag is in capitals
        stream = writer.add_stream_from_template(reader.streams.video[0])
        stream.metadata["ALPHA_MODE"] = "1"
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    assert next(read_frames([tmp_path / "alpha.mkv"], sampling=ALL)).pixels[:, :, :24].max() <= 16
    path = webm
    batch = next(read_frames([path], sampling=ALL))
    assert batch.frame_seconds.tolist() == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert batch.pixels[:, :, :24].max() <= 16
    assert batch.pixels[:, :, 40:].min() >= 239
    assert read(path, sampling=Sampling(count=2))[1] == [0.2, 0.6]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is not installed")
def test_frames_are_those_of_the_ffmpeg_command(tmp_path: Path) -> None:
    for path in (
        write_message_samples(tmp_path / "sei.mp4"),
        write_not_coded(tmp_path / "skipped.avi"),
        write_undeclared_reorder(tmp_path / "reorder.mkv"),
        write_repeated_time(tmp_path / "vfr.mkv"),
    ):
        command = [
            "ffmpeg",
            "-v",
            "quiet",
            "-i",
            path,
            "-vsync",
            "passthrough",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ]
        raw = subprocess.run(command, capture_output=True, check=True).stdout
        frames = np.frombuffer(raw, np.uint8).reshape(-1, 64, 64, 3)
        assert read(path)[0] == read_indices(frames), path.name


def test_a_picture_of_which_nothing_is_left_is_damage(tmp_path: Path) -> None:
    """Of MPEG-4; FFmpeg conceals it in MPEG-1 and MPEG-2, without a word."""
    path = tmp_path / "hole.avi"
    with av.open(path, "w") as container:
        stream = add_stream(container, "mpeg4", g="12", bf="0")
        for index, packet in enumerate(encode(stream, 60)):
            container.mux(packet if index != 24 else copy_of(packet, b"\xff" * packet.size))
    with pytest.raises(DecodeError) as caught:
        read(path)
    assert caught.value.num_recovered == 24
