"""Files on parallel file systems: written beside their place, made durable, then renamed."""

from aitrain.io.files import append_line, new_directory, sync_directory, write_text, writing

__all__ = ["append_line", "new_directory", "sync_directory", "write_text", "writing"]
