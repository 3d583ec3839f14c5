"""Files on parallel file systems: written next to their destination, made durable, then renamed."""

from aitrain.io.files import (
    append_line,
    discard,
    new_directory,
    remove_leftovers,
    sync_directory,
    write_bytes,
    write_text,
    writing,
)

__all__ = [
    "append_line",
    "discard",
    "new_directory",
    "remove_leftovers",
    "sync_directory",
    "write_bytes",
    "write_text",
    "writing",
]
