"""What the benchmarks share: arguments, alternating contenders, tables, and the machine's description."""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.system.memory import keep_freed_memory

_PACKAGES = ("numpy", "zarr", "zarrs", "h5py", "numcodecs", "torch", "litdata", "mosaicml-streaming")

Row = dict[str, Any]


def arguments(description: str | None, *, against: str = "") -> argparse.Namespace:
    """--quick, --json FILE, --folder for the files that are measured; --against PATH, if it has a help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small and within a minute; ratios are rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables and the machine to FILE")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where the measured files are made (here)"
    )
    if against:
        parser.add_argument("--against", type=Path, metavar="PATH", help=against)
    keep_freed_memory()  # as every stage does
    return parser.parse_args()


def return_freed_memory() -> None:
    """The opposite of `keep_freed_memory`: glibc's defaults, for what others do."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-1, 128 << 10)  # M_TRIM_THRESHOLD
    libc.mallopt(-4, 65536)  # M_MMAP_MAX
    libc.malloc_trim(0)


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    *,
    num_rounds: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each contender; they take turns, so that all see the same machine.

    `before` is run before each, and not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_rounds):
        for name, run in contenders.items():
            before()
            seconds[name].append(seconds_of(run))
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_mb() -> float:
    """This process's largest memory so far, in MiB. (getrusage's peak is inherited from the parent.)"""
    line = next(line for line in _lines("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def in_fresh_process(code: str, *args: object) -> list[float]:
    """The figures that `code` prints, run by a process of its own: peak memory is a process's."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@dataclass
class Report:
    """Tables as they are measured; each is printed at once."""

    name: str
    quick: bool
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        print(", ".join(f"{key} {value}" for key, value in self.machine.items() if value), flush=True)

    def add(self, title: str, rows: list[Row]) -> None:
        self.tables[title] = rows
        print(f"\n{title}\n\n{markdown(rows)}", flush=True)

    def write(self, path: Path | None) -> None:
        if path:
            path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def markdown(rows: list[Row]) -> str:
    """A table whose columns are the first row's keys."""
    names = list(rows[0]) if rows else []
    cells = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return str(value)


def machine() -> dict[str, Any]:
    cpu = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory[0] / 2**20) if memory else None,
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),  # what else ran when it started
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
