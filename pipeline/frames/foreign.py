"""What a file is that no decoder of images knows, told from its first bytes, and what to do about it."""

import re

_CONVERT = "Convert it to JPEG or PNG."
_DOWNLOAD = "Download the image again."

# The first pattern that matches at the file's beginning counts.
_KINDS = (
    (rb"$", "it is empty", _DOWNLOAD),
    (rb"\0{64}", "it begins with nothing but zeros, as after a copy that was interrupted", "Copy it again."),
    (
        rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
        "it is a HEIC image, which Pillow reads with pillow-heif alone",
        "Run `pip install pillow-heif`, or convert it to JPEG or PNG.",
    ),
    (
        rb"....ftypavi[fs]",
        "it is an AVIF image, which this Pillow can't read",
        "Run `pip install -U 'pillow>=11.3'`, or convert it to JPEG or PNG.",
    ),
    (rb"(\xff\x0a|\0\0\0\x0cJXL )", "it is a JPEG XL image, which Pillow can't read", _CONVERT),
    (rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)", "it is a JPEG 2000 image, which is not read here", _CONVERT),
    (rb"8BPS", "it is a Photoshop document", _CONVERT),
    (rb"....ftyp", "it is a video (MP4 or MOV)", "Give it a video's name, such as .mp4."),
    (rb"RIFF....AVI ", "it is a video (AVI)", "Give it the name .avi."),
    (rb"\x1a\x45\xdf\xa3", "it is a video (Matroska or WebM)", "Give it the name .mkv."),
    (rb"%PDF", "it is a PDF document", _CONVERT),
    (rb"(PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!)", "it is an archive", "Unpack it, and name what is inside."),
    (rb"version https://git-lfs", "it is a pointer of Git LFS, not its content", "Run `git lfs pull`."),
    (rb"/annex/objects/", "it is a pointer of git-annex, not its content", "Run `git annex get`."),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!doctype svg|<svg)", "it is an SVG drawing", _CONVERT),
    (
        rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype html|html|head|body)",
        "it is an HTML page, as sent in place of a file that is gone or needs a login",
        _DOWNLOAD,
    ),
    (rb"\s*[<{\[]", "it is text (XML or JSON), as sent in place of a file that is gone", _DOWNLOAD),
)
_PATTERNS = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what, remedy) for pattern, what, remedy in _KINDS
]
_HEAD_BYTES = 4096


def foreign_kind(data: bytes) -> tuple[str, str] | None:
    """What the bytes are, as `it is ...`, and the way out; None when they look like nothing that is known."""
    head = data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")
    return next(((what, remedy) for pattern, what, remedy in _PATTERNS if pattern.match(head)), None)
