"""Tests of the trainer room; a package, because tests/models has files of the same names."""
