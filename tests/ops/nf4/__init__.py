"""4-bit weights: definition, kernel, op, bitsandbytes' own answers, machine code, planted bugs."""
