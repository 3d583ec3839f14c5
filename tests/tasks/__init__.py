"""Tests of the tasks: losses, metrics, samples."""
