"""Multi-tensor AdamW: one launch per group, moments in fp32, bf16 or 8 bits, the gradient norm and its clip inside."""
