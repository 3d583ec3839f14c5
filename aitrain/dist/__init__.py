"""Ranks: detection of the launcher, starting ranks on this machine, and communication between them."""
