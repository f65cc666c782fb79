"""Entry point of `python -m clusterq_gen`, the same as the console script."""

from clusterq_gen.cli import main

main()
