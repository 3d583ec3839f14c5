"""Tests of the way from a recipe and a cluster profile to a Slurm job."""
