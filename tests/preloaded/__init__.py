"""Programs of a test in processes of their own, without the seconds that each spends on importing torch.

With `environment()`, a Python that starts runs `site/sitecustomize.py` first. It hands its command line, folder, environment and
open streams to `server.py`, a process that has imported the slow packages. The server forks, and the fork runs the program. Signals
and the exit code are passed on. Tests of what a start itself does (imports, time, limits of the system) start Python plainly.
"""

import atexit
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Named in the environment of a Python that shall hand its program over.
SOCKET = "CLUSTERQ_PRELOADED"


def plain_environment() -> dict[str, str]:
    """The environment in which a program finds this process's packages and computes with one thread."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def environment() -> dict[str, str]:
    """The same for a program that is run by a fork of the server. The first call in a test process starts the server."""
    given = plain_environment()
    if not hasattr(os, "pidfd_open"):  # the server needs Linux
        return given
    return {**given, "PYTHONPATH": os.pathsep.join([str(HERE / "site"), given["PYTHONPATH"]]), SOCKET: _server()}


@cache
def _server() -> str:
    """Start the server and return its address. It ends when this process closes its standard input, at the latest by ending."""
    folder = tempfile.TemporaryDirectory(prefix="clusterq-preloaded-")
    address = str(Path(folder.name) / "socket")
    command = [sys.executable, str(HERE / "server.py"), address]
    process = subprocess.Popen(
        command, env=plain_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    atexit.register(folder.cleanup)
    atexit.register(process.wait)
    atexit.register(process.stdin.close)
    assert process.stdout.readline() == b"ready\n"
    return address
