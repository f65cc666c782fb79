"""The one exception that a user is meant to read."""


class ClusterqError(Exception):
    """A mistake outside the program: a flag, a file, a full disk.

    The message is one sentence that names the flag or file, what was found, what was expected and the next thing to try.
    The command lines print it and leave with exit code 2; any other exception is a defect and keeps its traceback.
    """
