"""Tests of `aitrain doctor`; a package, because other folders have a file of the same name."""
