"""Tasks: what is trained, one class each, in plain PyTorch."""
