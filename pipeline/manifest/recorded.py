"""The content of a manifest's sources, as digests: of what is read here, or as recorded where it was read.

The record is a text file with a line for each source, sorted by source: `<hex>[,<hex>...]  <source>`. A file
has one digest (xxh3-128), a folder one for each of its images, in natural order.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pipeline.errors import DecodeError, TextFileError, error_text
from pipeline.manifest.files import source_files
from pipeline.manifest.sources import fault_of
from pipeline.store.digests import DIGEST_BYTES, DigestCache
from pipeline.system.files import combined_digest, write_atomically
from pipeline.system.text_files import read_lines

Contents = Mapping[str, bytes]  # by source: the digests of its files, 16 bytes each, one after the other

NO_RECORD: Contents = MappingProxyType({})

_LINE = re.compile(r"([0-9a-f]{32}(?:,[0-9a-f]{32})*)  (.+)")


@dataclass(frozen=True)
class Sources:
    """What is known of the content of sources. A source that is not `unread` was read here."""

    contents: Contents  # of each source that was read here or is recorded
    unread: Mapping[str, str]  # by source, why it can't be read here

    @property
    def recorded(self) -> list[str]:
        """The sources that can't be read here and whose recorded content stands."""
        return [source for source in self.unread if source in self.contents]

    @property
    def unknown(self) -> list[str]:
        """The sources that can't be read here and are not recorded."""
        return [source for source in self.unread if source not in self.contents]


def scan_sources(
    sources: Iterable[str],
    *,
    root: Path | None,
    digests: DigestCache,
    recorded: Contents = NO_RECORD,
    reread: bool = False,
    on_progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> Sources:
    """Read the sources below `root` that are new or have changed, or with `reread` all, for their digests.

    A source that can't be read here keeps its recorded content; without a folder `root`, none can be read.
    `on_progress` is told how many bytes of how many were read. The caller saves `digests`.
    """
    if root is None or not root.is_dir():
        reason = f"there is no folder {root}" if root else "no root is given"
        unread = {
            name: f"source {name} can't be read: {reason}. Correct the corpus's root." for name in sources
        }
        return Sources(_recorded(unread, recorded), unread)
    contents: dict[str, bytes] = {}
    unread = {}
    files: dict[str, list[str]] = {}  # of the sources whose content is not known yet
    for source in sources:
        path = f"{root}/{source}"  # a string, and one stat of a known file: a million sources take seconds
        if not reread and (digest := digests.known(path)):
            contents[source] = digest
        elif fault := fault_of(root, source):
            unread[source] = f"source {fault.sentence(source)}"
        else:
            try:
                files[source] = list(map(str, source_files(Path(path))))
            except DecodeError as error:
                # The decoder rejects this clip, as long as the folder stays as it is. Without the root, the
                # reason is the same on every machine.
                reason = str(error).removeprefix(str(Path(path)))
                contents[source] = combined_digest([], extra=f"{source}{reason}")
    paths = [path for each in files.values() for path in each]
    if reread:
        digests.forget(paths)
    sizes = digests.unknown(paths)
    num_done, num_total = 0, sum(sizes.values())
    for path in digests.learn(sizes):
        num_done += sizes[path]
        on_progress(num_done, num_total)
    for source, each in files.items():
        try:
            contents[source] = b"".join(map(digests.digest, each))
        except OSError as error:
            unread[source] = error_text(error)
    return Sources(contents | _recorded(unread, recorded), unread)


def _recorded(unread: Iterable[str], recorded: Contents) -> dict[str, bytes]:
    return {source: recorded[source] for source in unread if source in recorded}


def read_sources(path: Path) -> dict[str, bytes]:
    """The contents that `write_sources` wrote; none where there is no file. Raises TextFileError."""
    contents = {}
    for number, line in read_lines(path) if path.exists() else ():
        found = _LINE.fullmatch(line)
        if not found:
            raise TextFileError(
                f"{path}: line {number} is not a digest and a source. Restore the file, or remove it."
            )
        contents[found[2]] = bytes.fromhex(found[1].replace(",", ""))
    return contents


def write_sources(path: Path, contents: Contents) -> None:
    """Write the record. Equal contents give equal bytes, and a file that has them already is left as it is.

    The file may be a read-only hardlink into DVC's cache: it is replaced, not written to.
    """
    lines = (f"{contents[source].hex(',', DIGEST_BYTES)}  {source}\n" for source in sorted(contents))
    data = "".join(lines).encode()
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)
