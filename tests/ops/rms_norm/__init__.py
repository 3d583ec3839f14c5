"""RMSNorm: definition, kernels, op, machine code, planted bugs."""
