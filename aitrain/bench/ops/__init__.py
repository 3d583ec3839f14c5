"""`aitrain bench ops`: every fused op beside eager PyTorch, torch.compile and the published kernels, in one process."""
