"""One command from a classifier to a file that runs: set, fine-tuning, export, benchmark."""
