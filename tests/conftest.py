"""What every test runs under: one thread per process, and no network by accident."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("WANDB_MODE", None)
