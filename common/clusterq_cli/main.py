"""Entry point of the programs: errors become one sentence and an exit code."""

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import is_main_process, quietly

USER_ERROR = 2
INTERRUPTED = 130


def run_guarded(
    action: Callable[[], None], *, debug: bool = False, quiet: bool = False, resume: Callable[[], str] | None = None
) -> None:
    """Run a command. The exit code is 2 with one sentence for a user's mistake or a full disk, and 130 when interrupted.

    Any other exception is a defect of the program and is raised with its traceback.

    Args:
        action: the command.
        debug: print the traceback before the sentence.
        quiet: no progress and no remarks, see `progress.quietly`.
        resume: returns the command line that continues after an interruption, for commands that can be resumed.
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
    """Return the command line of this process, as a person types it.

    Args:
        program: name of the program.
        more: flags to add where they are missing. `--overwrite` is left out, because it would delete finished work.
    """
    words = [word for word in sys.argv[1:] if word not in {"--overwrite", *more}]
    started = program
    if os.environ.get("WORLD_SIZE", "1") != "1":
        started = f"torchrun ... -m {program.replace('-', '_')} --"
    return " ".join([started, shlex.join([*words, *more])])


def run_to_end(app: Callable[[], object]) -> None:
    """Run a console script's command line, which ends in SystemExit.

    Under torchrun the process then exits at once. In the interpreter's teardown, native threads of the collectives have sometimes
    aborted (exit code -6) after all work was done and written, and torchrun treats that as a failed job.
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
        traceback.print_exc()
    # An interruption reaches all of torchrun's processes; an error may concern one process only.
    if code == USER_ERROR or is_main_process():
        print(f"Error: {sentence}" if code == USER_ERROR else sentence, file=sys.stderr)
    raise SystemExit(code)
