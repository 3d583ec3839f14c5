"""From a recipe and a cluster profile to a Slurm job: facts in, text out; only `submit.py` calls Slurm."""
