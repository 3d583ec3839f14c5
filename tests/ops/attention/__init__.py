"""Tests of attention in packed sequences."""
