"""Tests of the strategy room; a package, because tests/optim has files of the same names."""
