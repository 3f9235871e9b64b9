"""A `python` for tests whose stages start at once: in a process that has imported the packages already.

Importing torch and the rest takes most of the time of a stage that computes little. So one process, the
server, imports them once for all tests. `python -m stages.<name>` then asks the server for a copy of itself
(`fork`), and the copy imports this project's own code, from the folder in which the command was run or from
PYTHONPATH. The copy has the command's files, folder, environment and arguments; signals and the exit status
are passed on. Everything else runs in the real Python.
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
import site
import socket
import subprocess
import sys
import tempfile
import traceback
import uuid
from pathlib import Path
from typing import NoReturn

from pipeline.system.files import file_lock

LAZY = ("dask.delayed", "dask.threaded", "matplotlib.figure", "torchvision")  # imported where they are used

# Runs as `python`, without site-packages: it starts in hundredths of a second.
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
if sys.argv[1:2] != ["-m"] or not sys.argv[2].startswith("stages."):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
def is_inherited(number):
    try:
        return os.get_inheritable(number)
    except OSError:  # it has listed the folder, and is closed
        return False
def pass_on(number, _):
    try:
        server.send(bytes([number]))
    except ConnectionError:  # the stage has just ended
        pass
files = [number for number in map(int, os.listdir("/dev/fd")) if is_inherited(number)]
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
blocked = list(signal.pthread_sigmask(signal.SIG_BLOCK, []))
request = [files, blocked, sys.argv[2:], os.getcwd(), dict(os.environ)]
try:
    server.connect("/proc/self/fd/%d/socket" % os.open({folder!r}, os.O_RDONLY))
    socket.send_fds(server, [json.dumps(request).encode()], files)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    status = server.recv(100)
except ConnectionError:
    status = b""
if not status:
    sys.exit("The server that starts stages for tests has ended:\\n" + open({folder!r} + "/log").read())
status = int(status)
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) != signal.SIGKILL:  # which has no handler
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@functools.cache
def warm_python() -> Path:
    """The folder, for PATH, that has this `python`. The first caller of a run of tests starts the server.

    Elsewhere than on Linux it is the folder of the real Python.
    """
    if not hasattr(os, "pidfd_open"):
        return Path(sys.executable).parent
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)  # one for all workers
    folder = Path(tempfile.gettempdir()) / f"warm-python-{run}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with file_lock(folder / "lock", on_wait=lambda _: None):
        if not (folder / "python").exists():
            start_server(folder)
    return folder


def start_server(folder: Path) -> None:
    run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    number = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, (folder / "log").open("w") as log:
        listener.bind(f"/proc/self/fd/{number}/socket")  # the folder's own name may be too long for a socket
        listener.listen(100)
        _servers.append(
            subprocess.Popen(
                [sys.executable, "-m", __name__, str(run), str(listener.fileno()), folder],
                cwd=Path(__file__).parents[2],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
    os.close(number)
    client = folder / "python"
    client.touch(mode=0o700)
    client.write_text(CLIENT.format(python=sys.executable, folder=str(folder)))


_servers: list["subprocess.Popen[bytes]"] = []  # Python complains of a running process that is not kept


def serve(run: int, listener: socket.socket, folder: str) -> None:
    """Make a copy of this process for each client, until the process `run` ends."""
    import_packages()
    gc.freeze()  # a collection in a copy would write to all memory that it shares
    sys.executable = f"{folder}/python"
    end = os.pidfd_open(run)
    while end not in select.select([listener, end], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            keep(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    shutil.rmtree(folder)


def import_packages() -> None:
    """Import all stages for the sake of the packages that they import, and forget this project's own code."""
    import stages

    for module in pkgutil.iter_modules(stages.__path__, "stages."):
        if module.name != "stages.__main__":
            importlib.import_module(module.name)
    for name in LAZY:
        importlib.import_module(name)
    for name in list(sys.modules):
        if name.split(".")[0] in ("pipeline", "stages", "sitecustomize"):
            del sys.modules[name]


def keep(connection: socket.socket) -> NoReturn:
    """Start the stage that a client asks for, pass on the client's signals, tell it how the stage ends."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 250)
    stage = os.fork()
    if not stage:
        connection.close()
        become(files, *json.loads(message))
    for file in files:
        os.close(file)
    end = os.pidfd_open(stage)
    while end not in select.select([connection, end], [], [])[0]:
        number = connection.recv(1)
        os.kill(stage, number[0] if number else signal.SIGKILL)  # the client itself was killed
    status = os.waitpid(stage, 0)[1]
    with contextlib.suppress(BrokenPipeError):  # the client has been killed since
        connection.send(str(status).encode())
    os._exit(0)


def become(
    files: list[int],
    numbers: list[int],
    blocked: list[int],
    words: list[str],
    folder: str,
    environment: dict[str, str],
) -> NoReturn:
    """Run a stage in this process, with the files of a client under the numbers that they have there.

    Signals that the client was started with blocked are blocked, until the stage lets them in.
    """
    above = max(numbers) + 1
    for file in [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for file in files]:
        os.dup2(file, numbers.pop(0))
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = words
    sys.orig_argv = [sys.executable, "-m", *words]
    importlib.invalidate_caches()
    status: str | int | None = 0
    try:
        site.execsitecustomize()
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
