"""What a file is that is not what its name says, told from its first bytes, and what to do about it."""

import re

from PIL import Image

from pipeline.manifest.sources import POINTERS, Fault

_CONVERT = "Convert it to JPEG or PNG."
_DOWNLOAD = "Its download went wrong: download it again, or delete it."

_HEIC = Fault(
    "is a HEIC image, which Pillow can't read here",
    "Install pillow-heif (`pip install pillow-heif`), or convert it to JPEG or PNG.",
)
_AVIF = Fault(
    "is an AVIF image, which Pillow can't read here",
    "Install Pillow 11.3 or newer (`pip install -U pillow`), or convert it to JPEG or PNG.",
)
_FORMATS = {_HEIC: "HEIF", _AVIF: "AVIF"}  # as Pillow calls those that it may be able to read
_XML = rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*"

# The first pattern that matches at the file's beginning counts.
_KINDS = (
    (rb"%PDF", Fault("is a PDF document", _CONVERT)),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", Fault("is an archive", "Unpack it, and name what is inside.")),
    *POINTERS,
    (_XML + rb"(<!doctype svg|<svg)", Fault("is an SVG drawing", _CONVERT)),
    (_XML + rb"<(!doctype html|html|head|body)", Fault("is an HTML page", _DOWNLOAD)),
    # All but images and videos that begin as text: PPM, YUV4MPEG2.
    (rb"(?!P[1-7]|YUV4MPEG2)[\t\n\r\x20-\x7e\x80-\xff]+\Z", Fault("is text", _DOWNLOAD)),
)
_IMAGE_KINDS = (  # of which some are videos
    (rb"\Z", Fault("is empty", "Download or copy it again.")),
    (rb"\0{64}", Fault("begins with nothing but zeros", "Copy it again: a copy was interrupted.")),
    (rb"....ftyp(avi[fs]|m[is]f1.{4}(.{4}){0,8}avi[fs])", _AVIF),
    (rb"....ftyp(hei[cmsx]|hev[cmsx]|m[is]f1)", _HEIC),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", Fault("is a JPEG XL image, which Pillow can't read", _CONVERT)),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", Fault("is a JPEG 2000 image, which is not read here", _CONVERT)),
    (rb"8BPS", Fault("is a Photoshop document", _CONVERT)),
    (rb"....ftyp", Fault("is a video (MP4 or MOV) with an image's name", "Rename it: .mp4.")),
    (rb"RIFF....AVI ", Fault("is a video (AVI) with an image's name", "Rename it: .avi.")),
    (rb"\x1a\x45\xdf\xa3", Fault("is a video (Matroska or WebM) with an image's name", "Rename it: .mkv.")),
)
_HEAD_BYTES = 4096


def foreign_kind(data: bytes, *, is_image: bool) -> Fault | None:
    """What a file that begins with `data` is, if it is no image (or else no video).

    None for what may be one, as HEIC and AVIF are where Pillow reads them.
    """
    head = data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")
    for pattern, fault in _IMAGE_KINDS + _KINDS if is_image else _KINDS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return None if _FORMATS.get(fault) in Image.OPEN else fault
    return None
