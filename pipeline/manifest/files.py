"""Which files are videos and images by their names, and which images a folder is as one clip."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import DecodeError

# What Pillow calls the formats of images, by their suffixes. A .gif is a video.
IMAGE_FORMATS = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}

# fmt: off
_VIDEO_SUFFIXES = frozenset({
    ".264", ".265", ".266", ".3g2", ".3gp", ".amv", ".asf", ".avi", ".dav", ".dif", ".divx", ".dv", ".f4v",
    ".flc", ".fli", ".flv", ".gif", ".gxf", ".h264", ".h265", ".hevc", ".ismv", ".ivf", ".m1v", ".m2t",
    ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mts", ".mxf", ".nsv", ".nut", ".obu", ".ogg", ".ogm", ".ogv", ".qt", ".rm", ".rmvb",
    ".tod", ".trp", ".ts", ".vc1", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
})
# fmt: on

_NUMBERED = re.compile(r"(.*?)(\d+)\W*")  # of a stem: what precedes its trailing number, and the number

# Digits before the trailing number that count as well: a date, a time, a frame. A short number that
# directly follows a word names something instead: cam2_0001.
_COUNTING_DIGITS = re.compile(r"(?<![^\W\d_]{2})(?<!\d)\d+|\d{4,}")


def is_image(path: Path) -> bool:
    """Whether the file's name is an image's (a .gif is a video)."""
    return path.suffix.lower() in IMAGE_FORMATS


def is_video(path: Path) -> bool:
    """Whether the file's name is a video's."""
    return path.suffix.lower() in _VIDEO_SUFFIXES


def images_in_folder(folder: Path) -> tuple[Path, ...]:
    """The folder's images in natural order: 2.png comes before 10.png. Hidden files do not count."""
    return _in_natural_order(path for path in _visible(folder) if is_image(path))


def clip_of_folder(folder: Path) -> tuple[Path, ...]:
    """The images of a folder that is one clip, in natural order.

    Raises DecodeError, naming what is there, for a folder without images, with videos beside images, or
    with several numbered series of images (img_1, img_2, flow_1, flow_2): their frames would be mixed.
    """
    files = _visible(folder)
    images = _in_natural_order(path for path in files if is_image(path))
    videos = _in_natural_order(path for path in files if is_video(path) and path.is_file())
    if not images:
        raise DecodeError(f"{folder} has no images: a folder is a clip when it holds .png, .jpg, ... files.")
    if videos:
        raise DecodeError(
            f"{folder} holds videos ({_some(videos)}) beside images ({_some(images)}): a folder is a clip of"
            " images alone. Name each video as a clip of its own, and give the images a folder of their own."
        )
    if len(series := _series(images)) > 1:
        raise DecodeError(
            f"{folder} holds {len(series)} series of images ({'; '.join(map(_some, series))}): a folder is a"
            " clip of one. Give each series a folder of its own."
        )
    return images


def source_files(path: Path) -> tuple[Path, ...]:
    """The files that a source consists of: itself, or a folder's images in natural order.

    Raises DecodeError for a folder that is no clip, as `clip_of_folder` does.
    """
    return clip_of_folder(path) if path.is_dir() else (path,)


def _series(images: Sequence[Path]) -> list[tuple[Path, ...]]:
    """The numbered series among images in natural order, each of two or more numbers; [] for other names.

    A series has one text before its images' trailing numbers; or one suffix, where two or more names are
    there with several suffixes (1.jpg and 1.png: a picture and its mask).
    """
    if sum(count > 1 for count in Counter(path.stem for path in images).values()) > 1:
        return _grouped((path.suffix, path) for path in images)
    numbered = ((_NUMBERED.fullmatch(path.stem), path) for path in images)
    prefixes = ((_COUNTING_DIGITS.sub("#", match[1]), path) for match, path in numbered if match)
    return [series for series in _grouped(prefixes) if len(series) > 1]


def _grouped(named: Iterable[tuple[str, Path]]) -> list[tuple[Path, ...]]:
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for name, path in named:
        groups[name.casefold()].append(path)
    return [tuple(paths) for paths in groups.values()]


def _some(files: Sequence[Path]) -> str:
    """One or two files' names; of more, the first and last and how many there are."""
    if len(files) <= 2:
        return ", ".join(path.name for path in files)
    return f"{files[0].name} to {files[-1].name}, {len(files)} files"


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _in_natural_order(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(sorted(paths, key=_natural))


def _natural(path: Path) -> tuple[list[tuple[str, int]], str]:
    parts = re.findall(r"(\D*)(\d*)", path.name)
    return [(text, int(digits or -1)) for text, digits in parts], path.name
