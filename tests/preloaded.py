"""Runs the Python commands of shell scripts in forks of a process that has already imported the libraries.

A script with ten commands would otherwise start Python and import PyTorch ten times, at two seconds of a core. A shell
finds `dlsr`, `python` and the others on a `PATH` that starts with the folder `bin`. There they are small clients that
pass arguments, directory, environment and standard streams to the server, which forks.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from importlib import metadata
from pathlib import Path
from types import ModuleType

COMMANDS = ("dlsr", "python", "torchrun", "accelerate")
MODULES = (
    "dlsr.bench.compare",
    "dlsr.cli.app",
    "dlsr.evaluation",
    "dlsr.export",
    "dlsr.reports.evaluation",
    "dlsr.reports.html",
    "dlsr.sklearn",
    "accelerate",
    "fastapi",
    "sklearn.model_selection",
    "torch.distributed.run",
)
"""Libraries that start no threads when they are imported, since a fork has only the thread that forked."""
FORKABLE = {"jemalloc_bg_thd"}
"""The thread of PyArrow's allocator, which handles forks."""

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
command = {{"argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]], "cwd": os.getcwd(), "env": dict(os.environ)}}
socket.send_fds(connection, [b"."], [0, 1, 2])
connection.sendall(json.dumps(command).encode() + b"\\n")
answers = connection.makefile()
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
status = answers.readline()
answers.read()  # until the process has ended
sys.exit(int(status or 1))
"""


class Preloaded:
    """The server and the folder `bin` with its clients.

    Args:
        folder: an empty folder.
        environment: of the server; the environment of a command is that of its script.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        address = str(folder / "socket")
        for name in COMMANDS:
            (self.bin / name).write_text(CLIENT.format(python=sys.executable, address=address))
            (self.bin / name).chmod(0o755)
        self._server = subprocess.Popen(
            [sys.executable, __file__, address], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        self._server.communicate()


def serve(address: str) -> None:
    """Fork for each command, until standard input ends, at the latest with the process that started this one."""
    for module in MODULES:
        importlib.import_module(module)
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    threads = {(task / "comm").read_text().strip() for task in tasks}
    assert threads <= FORKABLE, threads
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended processes leave nothing behind
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            run(connection)
        connection.close()


def run(connection: socket.socket) -> None:
    """Run the client's command in this process, and end it."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    command = json.loads(connection.makefile().readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    connection.sendall(b"%d\n" % os.getpid())
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    name, *sys.argv[1:] = command["argv"]
    status: object = 0
    try:
        if name == "python":
            run_stdin()
        else:
            sys.argv[0] = str(Path(sys.executable).with_name(name))
            (entry,) = metadata.entry_points(group="console_scripts", name=name)
            status = entry.load()()
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    connection.sendall(b"%d\n" % (status if isinstance(status, int) else int(status is not None)))
    sys.exit()


def run_stdin() -> None:
    """What `python -` does."""
    assert sys.argv[1:] == ["-"]
    sys.argv = ["-"]
    sys.path[0] = ""
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(sys.stdin.read(), "<stdin>", "exec"), main.__dict__)


def end_with(connection: socket.socket) -> None:
    """End this process if its client is killed."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
