"""The edge between a program and its user: errors become one sentence and an exit code."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

from clusterq_common.runtime.errors import ClusterqError

USER_ERROR = 2
INTERRUPTED = 130


def run_guarded(action: Callable[[], None], *, debug: bool = False) -> None:
    """Run a command. Exit code 2 with one sentence for a user's mistake or a full disk, 130 when interrupted.

    Any other exception is a defect of the program and goes through with its traceback.

    Args:
        action: the command.
        debug: print the traceback before the sentence.
    """
    try:
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
        _leave("Interrupted; what was finished is on disk, --resume goes on from there.", INTERRUPTED, debug=debug)


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
        traceback.print_exc()
    print(f"Error: {sentence}" if code == USER_ERROR else sentence, file=sys.stderr)
    raise SystemExit(code)
