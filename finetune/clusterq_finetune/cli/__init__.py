"""Command lines of clusterq-finetune."""
