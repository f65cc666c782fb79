"""`python -m clusterq_finetune` is the same as the console script."""

from clusterq_finetune.cli.main import main

main()
