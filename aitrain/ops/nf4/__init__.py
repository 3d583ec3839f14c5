"""Weights in 4 bits, in the layout of bitsandbytes (NF4 and FP4): read, and turned back into numbers."""
