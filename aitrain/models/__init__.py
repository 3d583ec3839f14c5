"""Models: inspection of folders and files (no torch), loading, adapters, export."""
