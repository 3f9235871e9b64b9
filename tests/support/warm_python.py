"""A `python` for tests whose stages start at once: in a process that has imported the packages already.

Importing torch and the rest takes most of the time of a stage that computes little. So one process, the
server, imports them once for all tests. `python -m stages.<name>` then asks the server for a copy of itself
(`fork`), and the copy imports this project's own code, from the folder in which the command was run. The copy
has the command's files, folder, environment and arguments; signals and the exit status are passed on.

Everything else runs in the real Python, as does a stage whose PYTHONPATH is set.
"""

import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

LAZY = ("dask.delayed", "dask.threaded", "matplotlib.figure", "torchvision")  # imported where they are used

# Runs as `python`, without site-packages: it starts in hundredths of a second.
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
if sys.argv[1:2] != ["-m"] or not sys.argv[2].startswith("stages.") or "PYTHONPATH" in os.environ:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
def is_inherited(number):
    try:
        return os.get_inheritable(number)
    except OSError:  # it has listed the folder, and is closed
        return False
files = [number for number in map(int, os.listdir("/dev/fd")) if is_inherited(number)]
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = [files, sys.argv[2:], os.getcwd(), dict(os.environ)]
socket.send_fds(server, [json.dumps(request).encode()], files)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
status = int(server.recv(100))
if os.WIFSIGNALED(status):
    signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@functools.cache
def warm_python() -> Path:
    """The folder, for PATH, that has this `python`. The first caller of a run of tests starts the server."""
    run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir()) / f"warm-python-{run}"
    client, address = folder / "python", str(folder / "socket")
    try:
        folder.mkdir()
    except FileExistsError:
        while not client.exists():
            time.sleep(0.05)
        return folder
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(100)
        _servers.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm_python", str(run), str(listener.fileno()), client],
                cwd=Path(__file__).parents[2],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
    new = folder / "new"
    new.write_text(CLIENT.format(python=sys.executable, address=address))
    new.chmod(0o755)
    new.rename(client)
    return folder


_servers: list["subprocess.Popen[bytes]"] = []  # Python complains of a running process that is not kept


def serve(run: int, listener: socket.socket, client: str) -> None:
    """Make a copy of this process for each client, until the process `run` ends."""
    import_packages()
    gc.freeze()  # a collection in a copy would write to all memory that it shares
    sys.executable = client
    end = os.pidfd_open(run)
    while end not in select.select([listener, end], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            keep(connection)
            return
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    shutil.rmtree(Path(client).parent)


def import_packages() -> None:
    """Import all stages for the sake of the packages that they import, and forget this project's own code."""
    import stages

    for module in pkgutil.iter_modules(stages.__path__, "stages."):
        if module.name != "stages.__main__":
            importlib.import_module(module.name)
    for name in LAZY:
        importlib.import_module(name)
    for name in list(sys.modules):
        if name.split(".")[0] in ("pipeline", "stages"):
            del sys.modules[name]


def keep(connection: socket.socket) -> None:
    """Start the stage that a client asks for, pass on the client's signals, tell it how the stage ends."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 250)
    stage = os.fork()
    if not stage:
        connection.close()
        become(files, *json.loads(message))
        return
    for file in files:
        os.close(file)
    end = os.pidfd_open(stage)
    while end not in select.select([connection, end], [], [])[0]:
        number = connection.recv(1)
        os.kill(stage, number[0] if number else signal.SIGKILL)  # the client itself was killed
    connection.send(str(os.waitpid(stage, 0)[1]).encode())
    os._exit(0)


def become(
    files: list[int], numbers: list[int], words: list[str], folder: str, environment: dict[str, str]
) -> None:
    """Run a stage in this process, with the files of a client under the numbers that they have there."""
    above = max(numbers) + 1
    for file in [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for file in files]:
        os.dup2(file, numbers.pop(0))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder
    sys.argv = words
    importlib.invalidate_caches()
    status: str | int | None = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status or 0))  # without taking everything apart, which would copy all memory


if __name__ == "__main__":
    serve(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), sys.argv[3])
