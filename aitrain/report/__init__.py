"""The run's story, read from its directory."""
