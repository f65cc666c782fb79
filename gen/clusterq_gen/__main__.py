"""Entry point of `python -m clusterq_gen`, the same as the console script."""

import os
import sys

# `python -m` looks for every module in the current folder first, which may be one that was received.
_home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != _home:
    del sys.path[0]

from clusterq_gen.cli import main  # noqa: E402

main()
