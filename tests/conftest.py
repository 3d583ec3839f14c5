"""What every test runs under: one thread per process, and no network by accident."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("WANDB_MODE", None)
os.environ["AITRAIN_LOCAL_SLURM"] = "/nowhere/local-slurm"  # not the one that somebody may be trying

# Kernels that are decorated while this is set run in Triton's interpreter: so tests/ops runs them without a GPU.
if not os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/kfd"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
