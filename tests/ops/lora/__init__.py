"""Adapted linear layers: definition, products, op, gated MLP, planted bugs."""
