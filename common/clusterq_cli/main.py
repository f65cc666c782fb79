"""The edge between a program and its user: errors become one sentence and an exit code."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

from clusterq_common.errors import ClusterqError
from clusterq_common.escape import shell_command
from clusterq_common.progress.console import is_main_process, quietly, say

USER_ERROR = 2
INTERRUPTED = 130


def run_guarded(
    action: Callable[[], None], *, debug: bool = False, quiet: bool = False, resume: Callable[[], str] | None = None
) -> None:
    """Run a command. Exit code 2 with one sentence for a user's mistake or a full disk, 130 when interrupted.

    Any other exception is a defect of the program and goes through with its traceback.

    Args:
        action: the command.
        debug: print the traceback before the sentence.
        quiet: no progress and no remarks, see `progress.quietly`.
        resume: gives the command line that goes on after an interruption, for commands that can.
    """
    try:
        with quietly(quiet):
            action()
    except ClusterqError as error:
        _leave(str(error), USER_ERROR, debug=debug)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM}:
            raise
        where = f" at {error.filename}" if error.filename else ""
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = "free some space or choose another --out, then use --resume" if full else "check its permissions and its owner"
        _leave(f"{'Writing' if full else 'Access'} failed{where}: {error.strerror}; {advice}.", USER_ERROR, debug=debug)
    except KeyboardInterrupt:
        further = "" if resume is None else f" What is finished is on disk; to go on:\n  {resume()}"
        _leave(f"Interrupted.{further}", INTERRUPTED, debug=debug)


def same_command(program: str, *more: str) -> str:
    """The command line of this process, as a person types it.

    Args:
        program: its name.
        more: flags to add where they are not given. `--overwrite` is left out: it would delete what is finished.
    """
    words = [word for word in sys.argv[1:] if word not in {"--overwrite", *more}]
    started = program
    if os.environ.get("WORLD_SIZE", "1") != "1":
        started = f"torchrun ... -m {program.replace('-', '_')} --"
    return f"{started} {shell_command(*words, *more)}"


def run_to_end(app: Callable[[], object]) -> None:
    """Run a console script's command line, which ends in SystemExit.

    A process that torchrun started then ends at once: in the interpreter's teardown, native threads of the collectives have aborted
    now and then (exit code -6), after everything was done and written, and torchrun takes that for a failed job.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        app()
        return
    code = 0
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave(sentence: str, code: int, *, debug: bool) -> None:
    if debug:
        for line in traceback.format_exc().splitlines():
            say(line)
    # An interruption reaches all of torchrun's processes alike; an error may be one's own.
    if code == USER_ERROR or is_main_process():
        for line in (f"Error: {sentence}" if code == USER_ERROR else sentence).splitlines():
            say(line)
    raise SystemExit(code)
