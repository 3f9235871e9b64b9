"""Sources that can't be read, before a decoder sees them: missing ones and those that were not fetched."""

import os
import re
import stat
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import few

_MAX_POINTER_BYTES = 1024
_DVC_OBJECT = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{30}$")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a source can't be read. The source's name and `reason` make a sentence."""

    reason: str
    remedy: str
    is_unfetched: bool = False  # the corpus has the file, this machine has not

    def sentence(self, source: str | Path) -> str:
        """What is wrong with `source`, and what to do."""
        return f"{source} {self.reason}. {self.remedy}"


_MISSING = Fault("does not exist", "Correct it, or the corpus's root.")
_ANNEX = Fault(
    "was not fetched by git-annex: its content is not on this machine",
    "Run `git annex get .` (or `datalad get .`) in the corpus's folder.",
    is_unfetched=True,
)
_LFS = Fault(
    "was not fetched by Git LFS: the file is only a pointer",
    "Run `git lfs pull` in the corpus's folder.",
    is_unfetched=True,
)
_DVC = Fault(
    "was not fetched by DVC: it links to a file that is not in DVC's cache",
    "Run `dvc pull` in the corpus's repository.",
    is_unfetched=True,
)

# What a file begins with that stands for another.
POINTERS = ((rb"version https://git-lfs\.github\.com/", _LFS), (rb"[\x20-\x7e]*annex/objects/", _ANNEX))


def fault_sentences(faults: Mapping[str, Fault]) -> dict[str, str]:
    """{source: sentence}. Sources that have one fault share the first one's; a missing source has its own."""
    alike = defaultdict(list)
    for source, fault in faults.items():
        alike[fault, source if fault == _MISSING else ""].append(source)
    sentences = {}
    for (fault, _), (first, *others) in alike.items():
        reason = f"{fault.reason} (and so {few(others)})" if others else fault.reason
        sentences[first] = replace(fault, reason=reason).sentence(first)
    return sentences


def fault_of(root: Path, source: str) -> Fault | None:
    """The fault of a file or a folder of images below `root`; None if it can be opened.

    Only very small files are read: they may be pointers.
    """
    path = os.path.join(root, source)  # noqa: PTH118 (4x faster)
    try:
        status = os.stat(path)  # noqa: PTH116
        if stat.S_ISDIR(status.st_mode):
            return _unfetched_link_in(Path(path))
        return _pointer(path) if 0 < status.st_size <= _MAX_POINTER_BYTES else None
    except (FileNotFoundError, NotADirectoryError):
        return _dangling(root, source) or _MISSING
    except OSError as error:
        return Fault(f"can't be opened: {error.strerror}", "Correct its permissions or its links.")
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        return Fault(f"can't be named in this locale, whose encoding is {encoding}", "Set PYTHONUTF8=1.")


def _dangling(root: Path, source: str) -> Fault | None:
    """The fault of the first folder or file in the path of `source` that is a link to nothing."""
    path = root
    for part in Path(source).parts:
        path /= part
        if path.is_symlink() and not path.exists():
            subject = "is" if path == root / source else f"lies in {part!r}, which is"
            return _link_to_nothing(path, subject)
    return None


def _unfetched_link_in(folder: Path) -> Fault | None:
    with os.scandir(folder) as entries:
        links = [Path(entry) for entry in entries if entry.is_symlink() and not entry.name.startswith(".")]
    dangling = next((link for link in sorted(links) if not link.exists()), None)
    return _link_to_nothing(dangling, f"holds {dangling.name!r}, which is") if dangling else None


def _link_to_nothing(link: Path, subject: str) -> Fault:
    target = os.readlink(link)  # noqa: PTH115 (pathlib would tidy it)
    if "annex/objects/" in target:
        return _ANNEX
    if _DVC_OBJECT.search(target):
        return _DVC
    remedy = "Mount or fetch what it links to, or take the link away."
    return Fault(f"{subject} a link to {target!r}, which is not there", remedy, is_unfetched=True)


def _pointer(path: str) -> Fault | None:
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(_MAX_POINTER_BYTES)
    return next((fault for pattern, fault in POINTERS if re.match(pattern, head)), None)
