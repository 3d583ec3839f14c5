"""Fused ops: one folder per op with its reference, its Triton kernel, its registration and its public function."""
