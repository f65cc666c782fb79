"""The edge between a program and its user: errors become one sentence and an exit code."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext

from clusterq_cli.flags import flag_of
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import shell_command, without_secrets
from clusterq_common.files import final_name
from clusterq_common.progress.console import info, is_main_process, quietly, write_line
from clusterq_common.setting_names import runs_in_command, settings_spelled_by

USER_ERROR = 2
_SPACE = {errno.ENOSPC, errno.EDQUOT}
_RIGHTS = {errno.EACCES, errno.EROFS, errno.EPERM}
_PLACES = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.EXDEV, errno.ESTALE}
# What to try, where it is neither space nor rights nor a place that is not there.
_ADVICE = {
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another file system",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "put a file or a folder in the place of the link",
    errno.EPIPE: "the program that read the output has closed it; run the command again",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOMEM: "free some memory",
    errno.EIO: "the disk, or the connection to it, may be failing: look into the system's log, and copy what is on it",
    errno.ENXIO: "the device has gone: connect it again",
    errno.ENODEV: "the device has gone: connect it again",
    errno.ETIMEDOUT: "the file system does not answer: check the network",
    errno.ENOTCONN: "the file system does not answer: check the network",
}
INTERRUPTED = 130


def run_guarded(
    action: Callable[[], None], *, debug: bool = False, quiet: bool = False, resume: Callable[[], str] | None = None
) -> None:
    """Run a command. Exit code 2 with one sentence for a user's mistake or an error of the operating system, 130 when interrupted.

    Any other exception is a defect of the program and goes through with its traceback.

    Args:
        action: the command.
        debug: print the traceback before the sentence.
        quiet: no progress and no remarks, see `progress.quietly`.
        resume: gives the command line that goes on after an interruption, for commands that can.
    """
    # A command of ours (`app.py`) spells its settings already, in its own way.
    spelled = nullcontext() if runs_in_command() else settings_spelled_by(flag_of)
    try:
        with spelled, quietly(quiet):
            action()
    except ClusterqError as error:
        _leave(str(error), USER_ERROR, debug=debug)
    except UnicodeEncodeError as error:  # of a file's name: the file system holds any bytes
        _leave(
            f"A file has a name that is no UTF-8 ({error.object[:80]!r}), expected one that can be written down; rename the file.",
            USER_ERROR,
            debug=debug,
        )
    except OSError as error:
        if error.errno not in _SPACE | _RIGHTS | _PLACES | _ADVICE.keys():  # a defect
            raise
        if error.errno == errno.EPIPE:
            _drop_stdout()
        _leave(_sentence(error, resume), USER_ERROR, debug=debug)
    except KeyboardInterrupt:
        further = "" if resume is None else f" What is finished is on disk; to go on:\n  {resume()}"
        _leave(f"Interrupted.{further}", INTERRUPTED, debug=debug)


def say_begin(what: str) -> None:
    """Print the first line of a command, before torch is imported, which takes seconds."""
    info(f"{what}; loading torch and the classifier")


def same_command(program: str, *more: str) -> str:
    """The command line of this process, as a person types it.

    Args:
        program: its name.
        more: flags to add where they are not given. `--overwrite` is left out: it would delete what is finished.
    """
    words = [without_secrets(word) for word in sys.argv[1:] if word not in {"--overwrite", *more}]
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


def _sentence(error: OSError, resume: Callable[[], str] | None) -> str:
    """Describe an error of the operating system: the refusal, its place, and what to try."""
    where = f" at {final_name(str(error.filename))}" if error.filename else ""
    if error.errno in _SPACE:
        then = " or choose another --out." if resume is None else f", then go on with: {resume()}"
        return f"Writing failed{where}: {error.strerror}; free some space{then}"
    advice = (
        "check its permissions and its owner" if error.errno in _RIGHTS else _ADVICE.get(error.errno or 0, "check the path")
    )
    return f"Access failed{where}: {error.strerror}; {advice}."


def _drop_stdout() -> None:
    """Let the interpreter's last flush of a closed stdout go nowhere, without a complaint of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _leave(sentence: str, code: int, *, debug: bool) -> None:
    if debug:
        for line in traceback.format_exc().splitlines():
            write_line(without_secrets(line))
    # An interruption reaches all of torchrun's processes alike; an error may be one's own.
    if code == USER_ERROR or is_main_process():
        for line in (f"Error: {sentence}" if code == USER_ERROR else sentence).splitlines():
            write_line(line)
    raise SystemExit(code)
