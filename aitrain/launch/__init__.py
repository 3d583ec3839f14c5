"""From a recipe and a cluster profile to a Slurm job: only `submit.py` calls Slurm."""
