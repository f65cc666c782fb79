"""Helper processes that end when their parent ends. Free of torch."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it has ended, whatever ended it: a signal that nothing can answer, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # At once: the main thread waits for work that nobody sends any more.
        os._exit(1)
