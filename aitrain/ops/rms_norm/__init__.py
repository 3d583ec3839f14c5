"""RMSNorm, with the residual addition before it in the same pass."""
