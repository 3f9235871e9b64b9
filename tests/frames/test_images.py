"""Images: pixels are read whatever the metadata say, and only pixels that are missing are damage."""

import re
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from pipeline.contract import Preprocessing, Sampling
from pipeline.errors import DecodeError
from pipeline.frames import probe, read_frames
from pipeline.settings.extract import Limits
from tests.support.image_bytes import (
    HEADER_BYTES,
    PngFrame,
    animated_png,
    chunk,
    decoded,
    encoded,
    segment,
    tiff,
    tiff_image,
    turned_exif,
)
from tests.support.media import write_video

ALL = Sampling()
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
TURNED = np.rot90(PIXELS, -1)
PNG = encoded(PIXELS, "PNG")
JPEG = encoded(PIXELS, "JPEG")
FAR = struct.pack("<I", 0x7FFFFFFF)


def read(path: Path, data: bytes, **options: Limits) -> tuple[np.ndarray, list[float]]:
    """The frames (T, H, W, 3) and times of a file with these bytes."""
    path.write_bytes(data)
    batches = list(read_frames([path], sampling=ALL, **options))
    return np.concatenate([batch.pixels for batch in batches]), [
        seconds for batch in batches for seconds in batch.frame_seconds.tolist()
    ]


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        read(path, data)
    return str(caught.value)


PNG_METADATA = {
    "a text of 20 MB": (b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000))),
    "an international text of 20 MB": (b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(20_000_000))),
    "a profile of 3 MB": (b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000))),
    "a profile that is none": (b"iCCP", b"p\0\0none"),
    "texts of 70 MB in all": (b"tEXt", b"a\0" + bytes(70_000_000)),
    "no gamma": (b"gAMA", b""),
    "half a size": (b"pHYs", b"x"),
    "EXIF that is none": (b"eXIf", b"none"),
}


@pytest.mark.parametrize("crc", [None, 1], ids=["right checksum", "wrong checksum"])
@pytest.mark.parametrize("what", PNG_METADATA)
def test_a_png_s_metadata_do_not_decide_whether_it_is_read(
    tmp_path: Path, what: str, crc: int | None
) -> None:
    for place in (HEADER_BYTES, len(PNG) - 12):  # before and behind the pixels
        data = PNG[:place] + chunk(*PNG_METADATA[what], crc=crc) + PNG[place:]
        np.testing.assert_array_equal(read(tmp_path / "a.png", data)[0][0], PIXELS)


def test_a_png_may_go_on_or_stop_behind_its_pixels(tmp_path: Path) -> None:
    for data in (PNG + b"junk" * 100, PNG[:-12], PNG[:-5], PNG[:-12] + chunk(b"tEXt", bytes(900))[:500]):
        np.testing.assert_array_equal(read(tmp_path / "a.png", data)[0][0], PIXELS)


def test_transparency_counts_with_a_wrong_checksum_as_in_ffmpeg(tmp_path: Path) -> None:
    file = BytesIO()
    Image.fromarray(PIXELS[..., 0]).save(file, "PNG", transparency=int(PIXELS[0, 0, 0]))
    right = re.search(rb"tRNS..", file.getvalue(), re.DOTALL)
    assert right is not None
    data = file.getvalue()[: right.end()] + b"none" + file.getvalue()[right.end() + 4 :]
    grey = np.where(PIXELS[..., :1] == PIXELS[0, 0, 0], 0, PIXELS[..., :1])
    np.testing.assert_array_equal(read(tmp_path / "a.png", data)[0][0], np.repeat(grey, 3, axis=2))


def test_a_png_is_turned_by_its_exif_in_either_form(tmp_path: Path) -> None:
    exif = turned_exif()
    profile = f"\nexif\n{len(exif):8}\n" + "\n".join(re.findall(".{1,72}", exif.hex())) + "\n"
    text = b"Raw profile type exif\0"
    for place in (HEADER_BYTES, len(PNG) - 12):
        for part in (
            chunk(b"eXIf", exif[6:]),
            chunk(b"tEXt", text + profile.encode()),
            chunk(b"zTXt", text + b"\0" + zlib.compress(profile.encode())),
        ):
            data = PNG[:place] + part + PNG[place:]
            np.testing.assert_array_equal(read(tmp_path / "a.png", data)[0][0], TURNED)


JPEG_METADATA = {
    "one of two parts of a profile": segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(100)),
    "a profile without a number": segment(0xE2, b"ICC_PROFILE\0"),
    "EXIF that is none": segment(0xE1, b"Exif\0\0none"),
    "EXIF without content": segment(0xE1, b"Exif\0\0"),
    "EXIF that lies far away": segment(0xE1, b"Exif\0\0II*\0" + FAR),
    "EXIF of more entries than there are": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "an orientation that there is not": segment(
        0xE1, b"Exif\0\0" + tiff([(0x112, 3, 1, struct.pack("<HH", 9, 0))])
    ),
    "an orientation that is a text": segment(0xE1, b"Exif\0\0" + tiff([(0x112, 2, 4, b"\6\0\0\0")])),
    "half of Photoshop's": segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
    "several pictures that there are not": segment(0xE2, b"MPF\0II*\0none"),
    "half of JFIF's": segment(0xE0, b"JF"),
    "half of Adobe's": segment(0xEE, b"Adobe"),
    "an empty comment": segment(0xFE, b""),
    "a segment shorter than its length": b"\xff\xe1\0\0",
    "fill bytes": b"\xff\xff\xff",
    "bytes that are no segment": b"abc",
}


@pytest.mark.parametrize("what", JPEG_METADATA)
def test_a_jpeg_s_metadata_do_not_decide_whether_it_is_read(tmp_path: Path, what: str) -> None:
    data = JPEG[:2] + JPEG_METADATA[what] + JPEG[2:]
    np.testing.assert_array_equal(read(tmp_path / "a.jpg", data)[0][0], decoded(JPEG))


@pytest.mark.parametrize(
    "exif",
    [
        turned_exif(),
        turned_exif((0x8769, 4, 1, FAR), (0x8825, 4, 1, struct.pack("<I", 8))),
        turned_exif((0x10F, 99, 1, b"abcd"), (0x110, 2, 9999, FAR), (0x11A, 5, 1, FAR), (0x9286, 7, 9, FAR)),
        b"Exif\0\0" + tiff([(0x112, 4, 1, struct.pack("<I", 6))]),
        b"Exif\0\0" + tiff([(0x112, 3, 1, struct.pack(">HH", 6, 0))], order=">"),
        b"Exif\0\0Exif\0\0" + tiff([(0x112, 3, 1, struct.pack("<HH", 6, 0))])[:22],
    ],
    ids=["plain", "parts are far away", "of no type", "as a long", "big-endian", "twice and cut"],
)
def test_exif_that_can_t_be_rewritten_still_turns_the_picture(tmp_path: Path, exif: bytes) -> None:
    data = JPEG[:2] + segment(0xE1, exif) + JPEG[2:]
    np.testing.assert_array_equal(read(tmp_path / "a.jpg", data)[0][0], np.rot90(decoded(JPEG), -1))


def test_each_orientation_is_pillow_s(tmp_path: Path) -> None:
    turn = Image.Transpose
    turns = dict(
        enumerate(
            (
                turn.FLIP_LEFT_RIGHT,
                turn.ROTATE_180,
                turn.FLIP_TOP_BOTTOM,
                turn.TRANSPOSE,
                turn.ROTATE_270,
                turn.TRANSVERSE,
                turn.ROTATE_90,
            ),
            start=2,
        )
    )
    for number, method in turns.items():
        exif = tiff([(0x112, 3, 1, struct.pack("<HH", number, 0))])
        data = PNG[:HEADER_BYTES] + chunk(b"eXIf", exif) + PNG[HEADER_BYTES:]
        wanted = np.asarray(Image.fromarray(PIXELS).transpose(method))
        np.testing.assert_array_equal(read(tmp_path / "a.png", data)[0][0], wanted)


def test_a_jpeg_may_go_on_behind_its_end(tmp_path: Path) -> None:
    several = BytesIO()
    picture = Image.fromarray(PIXELS)
    picture.save(several, "MPO", save_all=True, append_images=[picture.rotate(90)])
    for data in (JPEG + b"junk" * 100, JPEG + JPEG, several.getvalue()):
        np.testing.assert_array_equal(read(tmp_path / "a.jpg", data)[0], decoded(JPEG)[None])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0, "quality": 98},
        {"restart_marker_blocks": 1},
        {"progressive": True, "restart_marker_rows": 1},
    ],
)
def test_a_jpeg_without_its_end_is_read_and_one_whose_pixels_are_cut_is_not(
    tmp_path: Path, options: dict[str, int]
) -> None:
    """Wherever it is cut: what is read has the pixels of the whole."""
    noise = np.random.default_rng(1).normal(0, 20, (40, 56, 3))
    for pixels in (PIXELS, np.clip(noise + 128, 0, 255).astype(np.uint8), np.full((40, 56, 3), 90, np.uint8)):
        data = encoded(pixels, "JPEG", **options)
        whole = decoded(data)
        for rest in (b"", b"\0" * 600) if data[-3] else (b"",):  # pixels that end with zeros are not told
            for cut in (1, 2):
                np.testing.assert_array_equal(read(tmp_path / "a.jpg", data[:-cut] + rest)[0][0], whole)
        start = data.index(b"\xff\xda") + 14
        markers = [
            match.end() for match in re.finditer(rb"\xff[\xd0-\xd7\xda\xc4]", data) if match.end() > start
        ]
        spread = range(start, len(data) - 2, 1 + len(data) // 40)
        for end in sorted(
            {
                *markers[::5],
                *(end - 2 for end in markers[::5]),
                *spread,
                *range(len(data) - 12, len(data) - 2),
            }
        ):
            for rest in (b"", b"\0" * 600):
                try:
                    found = read(tmp_path / "a.jpg", data[:end] + rest)[0][0]
                except DecodeError:
                    pass
                else:  # what is missing is of no pixel
                    np.testing.assert_array_equal(found, whole, err_msg=f"{options} {end} of {len(data)}")
        assert "the file is cut" in refusal(tmp_path / "a.jpg", data[: (start + len(data)) // 2])


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_half_of_a_file_is_damage_and_so_is_one_whose_rest_is_zeros(tmp_path: Path, format: str) -> None:  # noqa: A002
    data = encoded(PIXELS, format)
    half = data[: len(data) * 2 // 3]
    path = tmp_path / f"a.{format.lower()}"
    assert "can't be decoded" in refusal(path, half)
    if format == "PNG":  # elsewhere zeros may be pixels
        assert "can't be decoded" in refusal(path, half.ljust(len(data), b"\0"))


def test_a_webp_s_metadata_do_not_decide_whether_it_is_read(tmp_path: Path) -> None:
    data = encoded(PIXELS, "WEBP", lossless=True, exif=turned_exif(), icc_profile=bytes(500), xmp=b"<x/>")
    plain = encoded(PIXELS, "WEBP", lossless=True)
    exif = data.index(b"EXIF")
    for size in (len(data), len(data) - 16, 0):  # of which 8 less is right
        wrong = data[:4] + struct.pack("<I", size) + data[8:]
        np.testing.assert_array_equal(read(tmp_path / "a.webp", wrong)[0][0], TURNED)
    for wrong in (data[:-4], data + b"junk"):
        np.testing.assert_array_equal(read(tmp_path / "a.webp", wrong)[0][0], TURNED)
    for wrong in (data[: exif + 12], data[: exif + 8] + b"\xff" * 20 + data[exif + 28 :], plain + b"junk"):
        np.testing.assert_array_equal(read(tmp_path / "a.webp", wrong)[0][0], PIXELS)


@pytest.mark.parametrize(
    "entry",
    [
        (0x8769, 4, 1, FAR),
        (0x8825, 4, 1, struct.pack("<I", 8)),
        (0x8773, 7, 5000, FAR),
        (0x10E, 2, 5000, FAR),
        (0x11A, 5, 1, FAR),
        (0x2BC, 1, 5000, FAR),
    ],
)
def test_a_tiff_s_metadata_do_not_decide_whether_it_is_read(
    tmp_path: Path, entry: tuple[int, int, int, bytes]
) -> None:
    """Not even by a warning: those are errors in tests."""
    turn = (0x112, 3, 1, struct.pack("<HH", 6, 0))
    data = tiff_image(PIXELS, turn, entry)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", data)[0][0], TURNED)


def test_reading_changes_no_setting_of_the_process(tmp_path: Path) -> None:
    def settings() -> tuple[object, ...]:
        png = PngImagePlugin
        maxima = (png.MAX_TEXT_CHUNK, png.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS)
        return (ImageFile.LOAD_TRUNCATED_IMAGES, *maxima)

    before = settings()
    read(tmp_path / "a.jpg", JPEG[:-2])
    read(
        tmp_path / "a.png", PNG[:HEADER_BYTES] + chunk(*PNG_METADATA["a text of 20 MB"]) + PNG[HEADER_BYTES:]
    )
    assert settings() == before


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_pillows_limit_is_the_callers_and_does_not_count_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Pillow warns above its limit and refuses twice that, in some formats as late as pixels are read."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    kind = {"png": "PNG", "webp": "WEBP", "tif": "TIFF"}[suffix]
    data = encoded(PIXELS, kind, **({"lossless": True} if suffix == "webp" else {}))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: read(tmp_path / f"{number}.{suffix}", data), range(20)))
    for frames, _ in found:
        np.testing.assert_array_equal(frames[0], PIXELS)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(DecodeError, match="above the limit max_frame_pixels, 10"):
        read(tmp_path / f"a.{suffix}", data, limits=Limits(max_frame_pixels=10))
    assert Image.MAX_IMAGE_PIXELS == 10


OTHERS = {
    b"<!DOCTYPE html><html>": "it is an HTML page",
    b'\n\xef\xbb\xbf<?xml version="1.0"?>\n<html>'[1:]: "it is an HTML page",
    b"  <html lang=en>": "it is an HTML page",
    b'<svg xmlns="a">': "it is an SVG drawing",
    b'{"error": 404}': "it is text",
    "caf\xe9".encode("latin-1"): "it is text",
    b"": "it is empty",
    bytes(100): "it begins with nothing but zeros",
    b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
    b"\0\0\0\x18ftypisom\0\0\0\0": "it is a video (MP4 or MOV)",
    b"%PDF-1.4": "it is a PDF",
    b"PK\x03\x04": "it is an archive",
    b"\x01hello": "its bytes are not an image's",
}


@pytest.mark.parametrize("data", OTHERS)
def test_a_file_that_is_no_image_is_named_for_what_it_is(tmp_path: Path, data: bytes) -> None:
    message = refusal(tmp_path / "a.jpg", data)
    assert OTHERS[data] in message
    assert "object at 0x" not in message


def test_heic_needs_a_plugin_and_the_message_names_it(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    if "HEIF" not in Image.OPEN:
        assert "it is a HEIC image" in message
        assert "pip install pillow-heif" in message


@pytest.mark.parametrize("name", ["a.avif", "a.jpg"])
def test_avif_is_read_where_pillow_reads_it_under_any_image_s_name(tmp_path: Path, name: str) -> None:
    data = encoded(PIXELS, "AVIF")
    np.testing.assert_array_equal(read(tmp_path / name, data)[0][0], decoded(data))
    broken = encoded(PIXELS, "AVIF", exif=turned_exif()[:6] + tiff([(0x10F, 2, 4, b"abc\0")]))
    assert b"II*\0" in broken
    np.testing.assert_array_equal(
        read(tmp_path / name, broken.replace(b"II*\0", b"none"))[0][0], decoded(broken)
    )


def test_an_avif_is_turned_as_it_says(tmp_path: Path) -> None:
    data = encoded(PIXELS, "AVIF", exif=turned_exif()[6:])
    assert b"irot" in data  # Pillow's encoder makes a turn of its own of EXIF's
    np.testing.assert_array_equal(read(tmp_path / "a.avif", data)[0][0], np.rot90(decoded(data), -1))


@given(
    data=st.sampled_from([JPEG, PNG, encoded(PIXELS, "WEBP"), tiff_image(PIXELS)]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    end=st.floats(0, 1),
)
def test_an_error_never_shows_an_object_s_address(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, flips: list[tuple[float, int]], end: float
) -> None:
    damaged = bytearray(data[: round(end * len(data))])
    for place, value in flips:
        if damaged:
            damaged[int(place * len(damaged))] = value
    message = ""
    try:
        read(tmp_path_factory.getbasetemp() / "damaged.jpg", bytes(damaged))
    except DecodeError as error:
        message = str(error)
    assert " at 0x" not in message


def random_frames(seed: int, *, disposal: int, blending: int) -> list[PngFrame]:
    """Four frames of random opacity: one of the canvas' size, 6 x 8, and three smaller ones."""
    random = np.random.default_rng(seed)
    sizes = [(6, 8), (3, 4), (3, 4), (4, 5)]
    return [
        PngFrame(random.integers(0, 256, (*size, 4), dtype=np.uint8), top, left, disposal, blending)
        for size, top, left in zip(sizes, (0, 1, 3, 0), (0, 2, 4, 1), strict=True)
    ]


def composed(frames: Sequence[PngFrame]) -> np.ndarray:
    """What the specification of PNG says of the frames (T, H, W, 3), on black; in floats, with opacity."""
    canvas = np.zeros((*frames[0].pixels.shape[:2], 4))  # not premultiplied, 0 to 1
    shown = []
    for frame in frames:
        area = canvas[frame.top :, frame.left :][: frame.pixels.shape[0], : frame.pixels.shape[1]]
        before, pixels = area.copy(), frame.pixels / 255
        if frame.blending == 1:
            opacity = pixels[..., 3:] + before[..., 3:] * (1 - pixels[..., 3:])
            mixed = pixels[..., :3] * pixels[..., 3:] + before[..., :3] * before[..., 3:] * (
                1 - pixels[..., 3:]
            )
            pixels = np.concatenate([mixed / np.maximum(opacity, 1e-9), opacity], axis=2)
        area[:] = pixels
        shown.append(255 * canvas[..., :3] * canvas[..., 3:])
        if frame.disposal:
            area[:] = 0 if frame.disposal == 1 else before
    return np.stack(shown)


@pytest.mark.parametrize("has_hidden", [False, True])
@pytest.mark.parametrize("disposal", [0, 1, 2])
@pytest.mark.parametrize("blending", [0, 1])
def test_an_animated_png_s_frames_are_composed_as_its_specification_says(
    tmp_path: Path, blending: int, disposal: int, has_hidden: bool
) -> None:
    """A default picture that is no frame is not shown, and nothing is laid over it."""
    frames = random_frames(2, disposal=disposal, blending=blending)
    hidden = np.full((6, 8, 4), 255, np.uint8) if has_hidden else None
    pixels, times = read(tmp_path / "a.png", animated_png(frames, hidden=hidden))
    assert times == pytest.approx([0, 0.2, 0.4, 0.6])
    np.testing.assert_allclose(pixels, composed(frames), atol=1.5 if blending else 0.51)
    later = next(read_frames([tmp_path / "a.png"], sampling=Sampling(count=1)))
    np.testing.assert_array_equal(later.pixels, pixels[2:3])


@pytest.mark.parametrize("num_colours", [2, 4, 16])
def test_an_animated_png_of_few_colours_is_read(tmp_path: Path, num_colours: int) -> None:
    """Its pixels have 1, 2 or 4 bits, and frames behind the first cover what changes."""
    palette = np.random.default_rng(6).integers(0, 256, (num_colours, 3), dtype=np.uint8)
    numbers = np.random.default_rng(7).integers(0, num_colours, (12, 17), dtype=np.uint8)
    shown = [numbers.copy() for _ in range(3)]
    shown[1][3:8, 5:10] ^= 1
    shown[2][2:9, 4:16] ^= 1
    images = [Image.fromarray(frame, "P") for frame in shown]
    for image in images:
        image.putpalette(palette.tobytes())
    file = BytesIO()
    images[0].save(file, "PNG", save_all=True, append_images=images[1:], duration=50)
    assert file.getvalue()[24] == num_colours.bit_length() - 1
    pixels, times = read(tmp_path / "a.png", file.getvalue())
    assert times == pytest.approx([0, 0.05, 0.1])
    np.testing.assert_array_equal(pixels, palette[np.stack(shown)])


def test_one_frame_behind_a_hidden_picture_is_the_clip(tmp_path: Path) -> None:
    (frame,) = random_frames(3, disposal=0, blending=0)[:1]
    pixels, times = read(tmp_path / "a.png", animated_png([frame], hidden=frame.pixels[::-1]))
    assert times == [0]
    np.testing.assert_allclose(pixels, composed([frame]), atol=0.51)


def test_an_animated_png_that_is_cut_gives_the_frames_before(tmp_path: Path) -> None:
    data = animated_png(random_frames(4, disposal=0, blending=0))
    third = [match.start() - 4 for match in re.finditer(b"fcTL", data)][2]
    for end in (third, third + 38 + 20):  # before the third frame, and within its pixels
        path = tmp_path / "a.png"
        path.write_bytes(data[:end])
        batches = []
        with pytest.raises(DecodeError, match=r"2 frames recovered") as caught:
            batches.extend(read_frames([path], sampling=ALL))
        assert caught.value.num_recovered == 2
    path.write_bytes(data[:third])
    with pytest.raises(DecodeError, match=r"it has 2 of 4 frames \(2 frames recovered\)"):
        probe([path], sampling=ALL)
    outside = [*random_frames(4, disposal=0, blending=0)[:2], PngFrame(np.zeros((6, 8, 4), np.uint8), top=1)]
    assert "frame 2 lies outside of the picture" in refusal(tmp_path / "a.png", animated_png(outside))


def test_an_animated_webp_is_composed_on_black(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    frames = random.integers(0, 256, (3, 12, 16, 4), dtype=np.uint8)
    frames[..., 3] = np.where(frames[..., 3] > 127, 255, 0)
    images = [Image.fromarray(frame) for frame in frames]
    file = BytesIO()
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:], duration=100, lossless=True)
    pixels, times = read(tmp_path / "a.webp", file.getvalue())
    assert times == pytest.approx([0, 0.1, 0.2])
    np.testing.assert_array_equal(pixels, frames[..., :3] * (frames[..., 3:] // 255))


def test_a_file_larger_than_any_frame_is_refused_by_its_size(tmp_path: Path) -> None:
    data = PNG + bytes(9000)
    path = tmp_path / "a.png"
    limit = Limits(max_frame_pixels=PIXELS.shape[0] * PIXELS.shape[1])
    assert len(read(path, PNG, limits=limit)[0]) == 1
    with pytest.raises(DecodeError, match=rf"a file of {8 * 3072 + 8} bytes.*max_frame_pixels, 3072"):
        read(path, data.ljust(8 * 3072 + 8, b"\0"), limits=limit)


def test_a_frame_is_refused_for_what_resizing_would_make_of_it(tmp_path: Path) -> None:
    """Rows of 60000 x 2 pixels become 256, so that columns become 7680000."""
    for name, size in (("0.png", (60, 40)), ("1.png", (60000, 2)), ("2.png", (60, 40))):
        Image.new("L", size).save(tmp_path / name)
    resized = r"1\.png .* 60000 x 2 pixels, resized to 7680000 x 256, takes 1966080000 pixels: above the limi"
    frames = []
    with pytest.raises(DecodeError, match=resized) as caught:
        frames.extend(read_frames([tmp_path], sampling=ALL, preprocessing=Preprocessing()))
    assert caught.value.num_recovered == sum(len(batch.pixels) for batch in frames) == 1
    with pytest.raises(DecodeError, match="max_frame_pixels"):
        probe([tmp_path / "1.png"], sampling=ALL, preprocessing=Preprocessing())
    for size, allowed in (((40, 60), 40 * 60), ((20, 60), 40 * 60), ((60, 60), 60 * 60)):  # height, width
        limits = Limits(max_frame_pixels=allowed)
        wanted = Preprocessing(resize=size, crop=8)
        assert probe([tmp_path / "0.png"], sampling=ALL, preprocessing=wanted, limits=limits).height == 40
        wanted = Preprocessing(resize=(size[0], size[1] + 1), crop=8)
        with pytest.raises(DecodeError, match="max_frame_pixels"):
            probe([tmp_path / "0.png"], sampling=ALL, preprocessing=wanted, limits=limits)


def test_a_frame_smaller_than_the_crop_is_named_with_its_file(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", num_frames=2, size=(48, 64))
    smaller = r"a\.mp4 .* 64 x 48 pixels is smaller than the crop of 60 x 60 .* Set preprocessing.resize, or"
    for look in (lambda **options: list(read_frames([video], **options)), lambda **o: probe([video], **o)):
        with pytest.raises(DecodeError, match=smaller):
            look(sampling=ALL, preprocessing=Preprocessing(resize=None, crop=60))
        look(sampling=ALL, preprocessing=Preprocessing(resize=None, crop=48))
