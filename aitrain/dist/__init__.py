"""Ranks: who am I, how ranks are started on this machine, and what they say to each other."""
