"""`aitrain bench ops`: every fused op against eager PyTorch, torch.compile and published kernels, in one process."""
