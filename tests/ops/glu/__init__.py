"""Gated linear units: definition, kernels, op, machine code, planted bugs."""
