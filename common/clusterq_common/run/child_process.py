"""Helper processes and programs that end when their parent ends. Free of torch."""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

INTERRUPTED = 130
# Environment variable of programs that `run_program` starts: the parent's message, as JSON.
PART = "CLUSTERQ_PART"


def end_with_parent() -> None:
    """End this process when its parent ends, also by a signal that cannot be caught. Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # The process ends at once, because its main thread waits for work that is no longer sent.
        os._exit(1)


def run_program(
    module: str,
    arguments: Sequence[str],
    on_line: Callable[[str], object] | None = None,
    message: Mapping[str, Any] | None = None,
) -> int:
    """Run `python -m module arguments` until it ends, with this process's streams, and return its exit code.

    It ends with this process, whatever ended that. Ctrl-C reaches both; then it has time to end in order.

    Args:
        module, arguments: the program.
        on_line: called with each line of its stdout, which then is not this process's.
        message: what it gets from `read_parent_message`; JSON has to hold it.

    Raises:
        KeyboardInterrupt: either was interrupted.
    """
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-m", __name__, str(reading), module, *arguments]
        # The program can import all that this process can.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **part_environment(message or {}),
        }
        sys.stdout.flush()
        stdout = None if on_line is None else subprocess.PIPE
        process = subprocess.Popen(
            command, pass_fds=[reading], env=environment, stdout=stdout, text=True, errors="backslashreplace"
        )
        try:
            if on_line is not None and process.stdout is not None:
                with process.stdout:
                    for line in process.stdout:
                        on_line(line.rstrip("\n"))
            code = process.wait()
        except BaseException:  # Ctrl-C has reached the program, too: it has time to end before the interruption goes on
            process.wait()
            raise
    finally:
        os.close(reading)
        os.close(writing)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code


def is_part() -> bool:
    """Return whether another command runs this program as a part of its work. It then names no next command."""
    return PART in os.environ


def part_environment(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables that carry the parent's message."""
    return {PART: json.dumps(dict(message))}


def read_parent_message() -> dict[str, Any]:
    """Return the message of the command that started this program; empty if a user started it."""
    return dict(json.loads(os.environ.get(PART, "{}")))


def _end_at_end_of(descriptor: int) -> None:
    """Wait until the parent closes its end of a pipe, or ends."""
    os.read(descriptor, 1)
    os._exit(1)


if __name__ == "__main__":
    _, pipe, program, *rest = sys.argv
    threading.Thread(target=_end_at_end_of, args=(int(pipe),), daemon=True).start()
    sys.argv = [program, *rest]
    runpy.run_module(program, run_name="__main__", alter_sys=True)
