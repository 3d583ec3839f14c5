"""Detects the encoding of a text file, and names the byte that cannot be decoded."""

from __future__ import annotations

import codecs
import gzip
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, cast

from aitrain.errors import DataError

_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_LEGACY = ("cp1252", "cp1250", "cp1253", "cp1251", "mac_roman", "cp850")
"""Candidate encodings of files that are not UTF-8, the most common in Europe first."""

NAMES = {"cp1252": "Windows-1252", "cp1250": "Windows-1250", "cp1253": "Windows-1253", "cp1251": "Windows-1251"}
"""Python's name of an encoding -> its common name."""

_HEAD = 1 << 20
"""Bytes that are read to distinguish legacy encodings."""


@dataclass(frozen=True)
class Encoding:
    """The encoding of a file."""

    name: str
    """Python's name for it."""

    is_guess: bool = False
    """Whether it was guessed from the letters, which the user should know."""

    sample: str = ""
    """Words with letters that another encoding would show differently."""

    @property
    def title(self) -> str:
        """The common name."""
        return NAMES.get(self.name, self.name)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked where its name ends with `.gz`.

    Args:
        path: The file.

    Raises:
        DataError: The compressed data is damaged.
    """
    is_packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if is_packed else open(path, "rb") as file:
            yield cast(IO[bytes], file)
    except (EOFError, zlib.error, OSError) as fault:
        if not is_packed:
            raise
        raise DataError(f"{path.name}: damaged gzip file ({fault}): copy or write it again") from None


def marked_encoding(path: Path) -> str | None:
    """Return the encoding that a file's byte order mark names; None if it has none.

    Args:
        path: The file.

    Raises:
        DataError: The compressed data is damaged.
    """
    with opened(path) as file:
        head = file.read(4)
    return next((name for mark, name in _BOMS.items() if head.startswith(mark)), None)


def encoding_of(path: Path, given: str | None = None) -> Encoding:
    """Return the encoding of a text file: as given, from its byte order mark, UTF-8, or guessed from its letters.

    Args:
        path: The file.
        given: What the recipe says, or None.

    Raises:
        DataError: The given one does not exist, or nothing fits.
    """
    if given is not None:
        return Encoding(codecs.lookup(given).name)
    marked = marked_encoding(path)
    if marked is not None:
        return Encoding(marked)
    stat = path.stat()
    return _detected(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _detected(path: Path, _modified_ns: int, _size: int) -> Encoding:
    head = b""
    valid = broken = 0
    first_odd = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with opened(path) as file:
        while block := file.read(_HEAD):
            if not head:
                head = block
                if b"\0" in block[:1024]:
                    return Encoding("utf-16-le" if b"\0" in block[1:1024:2] else "utf-16-be", is_guess=True)
            if not (valid or broken or block.isascii()):
                head, first_odd = block, next(at for at, byte in enumerate(block) if byte > 127)
            text = decoder.decode(block)
            if not text.isascii():
                odd = sum(character > "\x7f" for character in text)
                wrong = text.count("\ufffd")
                valid, broken = valid + odd - wrong, broken + wrong
    # A few bytes that cannot be decoded in a file that is UTF-8 elsewhere are damage, not another encoding.
    if not broken or valid >= broken:
        return Encoding("utf-8")
    return _legacy(path, head[max(0, first_odd - 4096) :])


def _legacy(path: Path, content: bytes) -> Encoding:
    """Distinguish legacy encodings by the words they give; among equals, the more common one wins."""
    names = list(_LEGACY)
    if b"\r" in content and b"\n" not in content:  # as older Macs end lines
        names.sort(key=lambda name: name != "mac_roman")
    words = {name: _odd_words(content.decode(name, "replace")) for name in names}
    shares = {name: sum(_likeness(word, name) for word in words[name]) / max(1, len(words[name])) for name in names}
    best = max(names, key=lambda name: shares[name])
    if shares[best] < _LEAST:
        raise DataError(
            f"{path.name}: the encoding is not recognised: write data.encoding=NAME, for instance cp1252 (Windows)"
        )
    odd = list(dict.fromkeys(word.strip(".?!()") for word in words[best]))
    return Encoding(best, is_guess=True, sample=", ".join(odd[:5]))


def _odd_words(text: str) -> list[str]:
    """Return the words with letters or signs that ASCII does not have, at most `_ENOUGH`."""
    words = (found[0] for found in re.finditer(r'[^\s";,|]+', text))
    return list(islice((word for word in words if not word.isascii()), _ENOUGH))


_ENOUGH = 2000
"""Words that are looked at to distinguish encodings."""

_LEAST = 0.5
"""Least likeness to words below which an encoding is not taken for that of the file."""

_SIGNS = frozenset("€£°§–—‘’“”„…«»·•²³½¼©®™¿¡´\xa0")

_WESTERN = r"[äöüßéèêëàâáíîïóòôúûñçåøæœ]|[ìù](?!\w)|õ(?=e)|ã(?=[oe]|\W|$)"
_COMMON = {
    "cp1252": _WESTERN,
    "cp1250": "[äöüßéáíóúýąćęłńśźżčďěňřšťůžőűăâîşţđ]",
    "cp1253": "[ά-ώ](?<![ϊϋΰ])",
    "cp1251": "[а-я]",
    "mac_roman": _WESTERN,
    "cp850": _WESTERN,
}
"""Encoding -> letters, in lower case, that the languages written in it use often, some of them only at some places."""


def _likeness(word: str, encoding: str) -> float:
    """Return how much a word looks like one of the languages of an encoding: 0 to 1.

    It does not if it has letters of two scripts, a sign between letters, a capital after a small letter, or three Latin
    letters in a row that are not ASCII; else, it is the share of common letters among those beyond ASCII. Libraries are
    made for longer texts: tests/data/test_encodings.py counts what charset-normalizer gets wrong.
    """
    scripts = {unicodedata.name(character, "?").split()[0] for character in word if character.isalpha()}
    if len(scripts) > 1 or re.search(r"ς(?=\w)", word):
        return 0.0
    if scripts == {"LATIN"} and re.search(r"[^\x00-\x7f]{3}", word):
        return 0.0
    for before, character, behind in zip(f" {word}", word, f"{word[1:]} ", strict=False):
        if character.isascii():
            continue
        if not character.isalpha():
            is_inside = before.isalpha() and behind.isalpha() and character not in "’–·"
            if character not in _SIGNS or is_inside:
                return 0.0
        elif character.isupper() and before.isalpha() and not word.isupper():
            return 0.0
    letters = sum(character.isalpha() and not character.isascii() for character in word)
    return len(re.findall(_COMMON[encoding], word.lower())) / letters if letters else 1.0


def lines_of(path: Path, encoding: str) -> Iterator[tuple[int, str | DataError]]:
    """Yield number (from 1) and text of each line with its end, or why it cannot be decoded.

    Args:
        path: The file.
        encoding: Its encoding.

    Raises:
        DataError: The file is damaged as a whole.
    """
    if encoding.startswith(("utf-16", "utf-32")):
        yield from _wide_lines(path, encoding)
        return
    with opened(path) as file:
        for number, raw in enumerate(_raw_lines(file), start=1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                yield number, line.decode(encoding)
            except UnicodeDecodeError as fault:
                byte = f"byte 0x{line[fault.start]:02x} at {fault.start + 1} of the line"
                name = "UTF-8" if encoding == "utf-8" else NAMES.get(encoding, encoding)
                advice = "write data.encoding=NAME (for instance cp1252), or convert the file to UTF-8"
                yield number, DataError(f"{path.name}:{number}: not {name} ({byte}): {advice}")


def _raw_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines with their ends, also those of older Macs, which end with a carriage return alone."""
    for raw in file:
        if raw.endswith(b"\n") or b"\r" not in raw[:-1]:
            yield raw
        else:
            yield from (line.replace(b"\r", b"\n") for line in raw.splitlines(keepends=True))


def _wide_lines(path: Path, encoding: str) -> Iterator[tuple[int, str | DataError]]:
    """Yield the lines of a file whose line ends are two or four bytes long."""
    number = 0
    with opened(path) as file, codecs.getreader(encoding)(file) as text:
        try:
            rest = ""
            while block := text.read(1 << 16):
                *whole, rest = (rest + block).split("\n")
                for line in whole:
                    number += 1
                    yield number, (line.removeprefix("\ufeff") if number == 1 else line) + "\n"
            if rest:
                yield number + 1, rest
        except UnicodeDecodeError as fault:
            where = f"{path.name}:{number + 1}"
            raise DataError(f"{where}: not {encoding} ({fault.reason}): save the file again") from None
