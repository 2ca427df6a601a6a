"""Networks, and nothing else."""
