"""Models: what stands in a folder or file (no torch), loading, adapters, export."""
