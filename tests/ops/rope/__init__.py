"""Rotary embedding: definition, kernels, op, machine code, planted bugs."""
