"""What comes from outside: catalogue, queries, logs, encoder, parent release. Each is read here and nowhere else."""
