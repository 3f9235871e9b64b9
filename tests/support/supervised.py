"""A stand-in for extraction, to be supervised: each clip does to the process what its file says.

`python -m tests.support.supervised FOLDER`: FOLDER/<clip>.txt has words of `_act`; what is done, FOLDER/done
lists; FOLDER/log says how each process started. All clips are in flight at once, suspects alone.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from pipeline.system.supervisor import Notes, interrupt_once, read_orders


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--notes", type=int)
    parser.add_argument("--orders", type=int)
    arguments = parser.parse_args()
    interrupt_once()
    notes, orders = Notes(arguments.notes), read_orders(arguments.orders)
    folder: Path = arguments.folder
    with (folder / "log").open("a") as log:
        print(f"restart {orders.num_restarts}: {' '.join(map(_name, orders.suspects))}".strip(), file=log)
    done = (folder / "done").read_text().split() if (folder / "done").exists() else []
    names = [path.stem for path in sorted(folder.glob("*.txt")) if path.stem not in done]
    guilty = {_name(key): cause for key, cause in (orders.crashed | orders.set_aside).items()}
    suspects = [_name(key) for key in orders.suspects]
    others = [name for name in names if name not in guilty and name not in suspects]
    with notes.judged(3.0):
        for group in [*([name] for name in suspects), others]:
            for name in group:
                notes.decoding(_key(name))
                notes.waiting(_key(name))
            for name in group:
                notes.decoding(_key(name))
                _act(folder / f"{name}.txt", notes, alone=len(group) == 1)
                with (folder / "done").open("a") as file:
                    print(name, file=file)
                notes.done(_key(name))
    for name, cause in guilty.items():
        print(f"{'crashed' if _key(name) in orders.crashed else 'set aside'} {name}: {cause}")
    sys.exit(1 if orders.set_aside else 0)


def _act(path: Path, notes: Notes, *, alone: bool) -> None:
    match path.read_text().split():
        case ["die", name]:
            os.kill(os.getpid(), signal.Signals[name])
        case ["die-in-company", name] if not alone:
            os.kill(os.getpid(), signal.Signals[name])
        case ["hang"]:
            time.sleep(60)
        case ["slow"]:  # longer than the limit, with progress
            for _ in range(45):
                notes.decoding(_key(path.stem))
                time.sleep(0.1)
        case ["wait"]:  # as long, for room
            notes.waiting(_key(path.stem))
            for _ in range(45):
                notes.computed()
                time.sleep(0.1)
        case ["deaf"]:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            (path.parent / "ready").touch()
            time.sleep(60)
        case ["ready"]:
            (path.parent / "ready").touch()
            for _ in range(600):
                notes.decoding(_key(path.stem))
                time.sleep(0.1)


def _key(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def _name(key: bytes) -> str:
    return key.decode().rstrip(".")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
