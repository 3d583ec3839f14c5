"""Tests of the fused ops; test modules of several ops have the same names, hence the package."""
