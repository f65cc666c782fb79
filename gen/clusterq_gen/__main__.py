"""`python -m clusterq_gen` is the same as the console script."""

from clusterq_gen.cli import main

main()
