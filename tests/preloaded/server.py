"""Run programs in forks of this process, which has imported torch and both programs: `python server.py SOCKET`.

It writes "ready" and ends when its standard input is closed. For each connection it forks a keeper, and the keeper forks the program.
The keeper passes signals on and sends the exit code back (negative for a signal, 4 bytes). If the connection is closed, because the
process that asked was killed, the keeper kills the program.
"""

import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch.distributed.run",
    "torch._dynamo",  # an optimizer's first step imports it
    "torch.utils.data",
    "torch.onnx",
    "numpy",
    "PIL.Image",
    "onnx",
    "clusterq_gen.cli",
    "clusterq_gen.commands",
    "clusterq_finetune.cli.main",
    "clusterq_finetune.commands",
]


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    # A fork that never collects what was there before copies fewer pages.
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave nothing to wait for
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(sys.argv[1])
    listener.listen(64)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready and not os.read(0, 1):
            return
        if listener in ready:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                try:
                    keep(connection)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(70)
            connection.close()


def keep(connection: socket.socket) -> None:
    """Run the program that the connection asks for, and stay until it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    length = int.from_bytes(head, "big")
    body = b""
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            return
        body += part
    request = json.loads(body)
    child = os.fork()
    if child == 0:
        connection.close()
        run(request, streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    asked = True
    while True:
        ready, _, _ = select.select([ended, *([connection] if asked else [])], [], [])
        if ended in ready:
            break
        numbers = connection.recv(16)
        asked = bool(numbers)
        for number in numbers or [signal.SIGKILL]:
            with suppress(ProcessLookupError):
                os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):  # nobody is left to be told
        connection.sendall(code.to_bytes(4, "big", signed=True))
    os._exit(0)


def run(request: dict[str, Any], streams: list[int]) -> None:
    """Become the program: its streams, folder, environment and command line. It never returns."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        if stream > 2:
            os.close(stream)
    interrupts = signal.default_int_handler if request["interrupts"] else signal.SIG_IGN
    signal.signal(signal.SIGINT, interrupts)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    at_once = os.isatty(1) or request["unbuffered"]
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if at_once else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    random.seed()
    sys.modules["numpy"].random.seed()
    words = request["words"]
    first = request["cwd"] if request["module"] else str(Path(words[0]).resolve().parent)
    sys.path[:] = [first, *request["path"]]
    sys.argv = list(words)
    code: Any = 0
    try:
        if request["module"]:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            # Under its own name it stays in sys.modules, as the main module of a plain start does.
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)


def leave(code: Any) -> None:
    """End as Python does: registered functions, threads, streams, then the exit code."""
    import atexit
    import threading

    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    with suppress(BaseException):
        threading._shutdown()
    with suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    main()
