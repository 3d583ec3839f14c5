"""Images with labels: from folders named after their classes, or from tables; each fault names its file or line."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from aitrain.config.data import Images
from aitrain.data.column_names import missing_column
from aitrain.data.faults import RecordFaults
from aitrain.data.labels import class_faults, labels_of
from aitrain.data.records import check_file, read_records
from aitrain.data.source import Source
from aitrain.errors import DataError
from aitrain.io.files import file_digest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Image files that are looked for in folders."""

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
"""Names of folders that hold a whole data set, not a class."""

ImageSource = Path | bytes
"""An image file, or its content."""


@dataclass
class ImageList:
    """Contents of a folder or a table."""

    sources: list[ImageSource] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    """Names of the labels of each image."""

    places: list[str] = field(default_factory=list)
    """Place of each image."""

    others: list[str] = field(default_factory=list)
    """Files of a folder that are not images."""

    faults: RecordFaults = field(default_factory=RecordFaults)
    """Refused records."""


def check_source(source: Source) -> None:
    """Refuse a path that can hold no labelled images.

    Args:
        source: A folder or a table.

    Raises:
        DataError: Nothing is there, a folder has no classes, or the file type is not supported.
    """
    path = source.path
    if not path.is_dir():
        for file in source.files:
            check_file(file)
        if len({file.parent for file in source.files}) > 1:
            raise DataError(
                f"{source.name}: tables of images must be in one folder, because the paths of the images start there"
            )
        return
    folders = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{path} has no subfolders: put the images of each class into a folder with its name")
    if {name.lower() for name in folders} <= SPLITS:
        one, *more = [path / name for name in sorted(folders, key=lambda name: not name.lower().startswith("train"))]
        second = f" and data.validation_path={more[0]}" if more else ""
        raise DataError(f"{path} holds {', '.join(folders)}, which are not classes: write data.path={one}{second}")


def source_digest(source: Source, data: Images) -> str:
    """Return one checksum of everything that a folder, or a table with the files it names, holds.

    Args:
        source: A folder or a table.
        data: Which column names the image.
    """
    path = source.path
    if path.is_dir():
        named = [(file.relative_to(path).as_posix(), file) for file in _files(path)]
    else:
        images = [(where, image) for where, image, _ in _in_table(source, data)]
        named = [(where, image) for where, image in images if isinstance(image, Path)]
        if not named:
            return source.digest()
    digest = hashlib.sha256(b"" if path.is_dir() else source.digest().encode())
    for name, file in named:
        digest.update(f"{name}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def read_images(source: Source, data: Images, several: bool, known: list[str] | None = None) -> ImageList:
    """List the images of a folder or a table with their labels; no image is opened.

    Args:
        source: A folder or a table.
        data: Which columns hold what.
        several: Whether an image may have several labels.
        known: Labels that training has; None = this is the training data.

    Returns:
        The images, and in `faults` what is wrong with records; what is wrong with classes is told by `refuse`.

    Raises:
        DataError: The folder or table cannot be used as a whole.
    """
    found, path = ImageList(), source.path
    if path.is_dir():
        if several:
            raise DataError(
                f"{path} is a folder, where an image has one label: with task.multi_label=true write a table, for "
                "instance a .csv with the columns image and label"
            )
        entries = _in_folder(path, found)
    else:
        entries = _in_table(source, data)
    for where, image, record in entries:
        try:
            if isinstance(image, DataError):
                raise image
            label_field = "label" if path.is_dir() else data.label_field
            labels = labels_of(record, label_field, several, where, known)
        except DataError as fault:
            found.faults.add(fault)
            continue
        found.sources.append(image)
        found.labels.append(labels)
        found.places.append(where)
    if not found.sources and not found.faults.count:
        raise DataError(f"{path} contains no image ({', '.join(SUFFIXES)}): add some")
    return found


def refuse(found: ImageList, name: str, training: bool) -> None:
    """Refuse images of which a record is faulty or, in training data, a class cannot be learned.

    Args:
        found: From `read_images`.
        name: Name of the folder or table.
        training: Whether classes are looked at.

    Raises:
        DataError: All faults.
    """
    found.faults.refuse(*(class_faults(found.labels, found.places, name) if training else ()))


def opened(source: ImageSource, where: str) -> Image.Image:
    """Decode an image as it is meant to be seen, in RGB.

    Args:
        source: An image file, or its content.
        where: Its place, for messages.

    Raises:
        DataError: It is no image, or a broken one.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        reason = "no image that can be read" if isinstance(fault, UnidentifiedImageError) else str(fault)
        raise DataError(f"{where}: the image cannot be opened ({reason}): replace it, or remove it") from None


def _files(path: Path) -> list[Path]:
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def _in_folder(path: Path, found: ImageList) -> Iterator[tuple[str, ImageSource | DataError, dict[str, Any]]]:
    """Yield place, file and record of each image below a folder whose subfolders are the classes."""
    for file in _files(path):
        inside = file.relative_to(path)
        where = inside.as_posix()
        if file.suffix.lower() not in SUFFIXES:
            found.others.append(where)
        elif len(inside.parts) == 1:
            yield where, DataError(f"{where} is not in the folder of a class: move it into one"), {}
        else:
            yield where, file, {"label": inside.parts[0]}


def _in_table(source: Source, data: Images) -> Iterator[tuple[str, ImageSource | DataError, dict[str, Any]]]:
    """Yield place, image and record of each row; a relative path starts from the table's folder."""
    for where, record in read_records(source):
        if isinstance(record, DataError):
            yield where, record, {}
            continue
        if data.image_field not in record:
            yield where, missing_column(record, data.image_field, where, "data.image_field"), record
            continue
        yield where, _image(record[data.image_field], source.files[0], data.image_field, where), record


def _image(given: Any, table: Path, name: str, where: str) -> ImageSource | DataError:
    content = given.get("bytes") if isinstance(given, dict) else given  # as Hugging Face's datasets store images
    if content is None and isinstance(given, dict):
        content = given.get("path")
    if isinstance(content, bytes):
        return content
    if not isinstance(content, str) or not content.strip():
        return DataError(f"{where}: {name!r} is neither the path of an image nor an image")
    file = table.parent / content.strip()
    if not file.is_file():
        return DataError(f"{where}: image {content.strip()} does not exist (looked for {file})")
    return file


def unlabelled(source: Source, data: Images) -> Iterator[tuple[str, ImageSource]]:
    """Yield place and source of an image, of every image below a folder, or of every row of a table.

    Args:
        source: An image, a folder or a table.
        data: Which column names the image.

    Raises:
        DataError: There is none, or a row names none.
    """
    path = source.path
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        yield path.name, path
        return
    if path.is_dir():
        found = [file for file in _files(path) if file.suffix.lower() in SUFFIXES]
        if not found:
            raise DataError(f"{path} contains no image ({', '.join(SUFFIXES)}): add some")
        yield from ((file.relative_to(path).as_posix(), file) for file in found)
        return
    for where, image, _ in _in_table(source, data):
        if isinstance(image, DataError):
            raise image
        yield (os.path.relpath(image, path.parent) if isinstance(image, Path) else where), image
