"""The encoding of a text file is found, said where it is a guess, and a byte that does not fit is named."""

import gzip
from pathlib import Path

import pytest

from aitrain.data.encodings import encoding_of, lines_of
from aitrain.errors import DataError

DUTCH = "vraag;antwoord\r\nHoe zegt u één factuur op?;Dat kan via ‘Mijn account’ – kosten € 5\r\n"


def of(tmp_path: Path, content: bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("text", "encoding", "found", "is_guess"),
    [
        (DUTCH, "utf-8", "utf-8", False),
        (DUTCH, "utf-8-sig", "utf-8", False),
        (DUTCH, "utf-16", "utf-16", False),
        (DUTCH, "utf-16-le", "utf-16-le", True),
        (DUTCH, "utf-16-be", "utf-16-be", True),
        (DUTCH, "cp1252", "cp1252", True),
        ("Wie kündige ich?;Über die Größe – für Österreich", "cp1252", "cp1252", True),
        ("Où est l’hôtel?;À côté, ça va bien, déjà", "cp1252", "cp1252", True),
        ("Jak wypowiedzieć umowę?;Proszę wysłać wiadomość, żeby się dowiedzieć", "cp1250", "cp1250", True),
        ("Πώς ακυρώνω τη σύμβαση;Στείλτε μήνυμα στην υπηρεσία", "cp1253", "cp1253", True),
        ("plain", "ascii", "utf-8", False),
        ("", "ascii", "utf-8", False),
    ],
)
def test_found(tmp_path: Path, text: str, encoding: str, found: str, is_guess: bool) -> None:
    path = of(tmp_path, text.encode(encoding))
    answer = encoding_of(path)
    assert (answer.name, answer.is_guess) == (found, is_guess)
    lines = "".join(line for _, line in lines_of(path, answer.name) if isinstance(line, str))
    assert lines == text


SHORT = {
    "cp1252": [
        "één",
        "Zoë",
        "coöperatie",
        "prijs in €",
        "Hoe zeg ik één abonnement op? Dat kan via ‘Mijn account’ – kosten € 5",
        "België",
        "geïnteresseerd",
        "ruïne café",
        "Curaçao",
        "Zähler",
        "Büro",
        "Größe",
        "Müller Köln",
        "Straße",
        "Überweisung für Österreich",
        "„Meine Bestellungen“",
        "Käufer – Verkäufer",
        "10 m²",
        "Temperatur °C",
        "ÜBERSICHT",
        "Öl",
        "Où est l’hôtel",
        "À côté, ça va bien, déjà",
        "réponse",
        "créée",
        "Noël",
        "œuvre",
        "20 €",
        "garçon",
        "ÉTÉ",
        "Été",
        "¿Dónde está mi pedido?",
        "Niño",
        "¡Hola! Señor",
        "información",
        "perché",
        "città è più",
        "Qual è il prezzo?",
        "não",
        "informação",
        "ação põe",
        "Århus",
        "København",
        "smørrebrød på",
        "Øl",
        "Malmö",
        "Åsa",
        "är på gång",
        "Är det så?",
        "Hyvää päivää",
        "Yö",
        "Äiti",
    ],
    "cp1250": [
        "odpowiedź",
        "Jak wypowiedzieć umowę? Proszę wysłać wiadomość, żeby się dowiedzieć",
        "usługi",
        "Łódź",
        "Śląsk",
        "Příliš žluťoučký kůň",
        "čeština",
        "Děkuji, že jste přišli",
        "město Brno říká",
        "Hogyan mondhatom fel a szerződést?",
        "kérdés és válasz: őszintén",
        "Bună ziua, unde este coletul meu în ţară",
        "Što je češće",
        "Đakovo šuma",
    ],
    "cp1253": [
        "ερώτηση",
        "Πώς ακυρώνω τη σύμβαση",
        "Πού είναι το δέμα μου",
    ],
    "cp1251": [
        "въпрос",
        "Къде е моята пратка",
        "отговор",
    ],
    "mac_roman": [
        "één",
        "Größe für",
        "Où est l’hôtel? déjà",
        "perché è",
    ],
    "cp850": [
        "één",
        "Müller Köln",
        "Größe für",
        "déjà à côté",
        "København på",
    ],
}
"""Encoding -> texts as they stand in cells, in the languages that are written in it."""


@pytest.mark.parametrize(
    ("encoding", "text"), [(encoding, text) for encoding, texts in SHORT.items() for text in texts]
)
@pytest.mark.parametrize("rows", [1, 40])
def test_a_few_letters_are_enough(tmp_path: Path, encoding: str, text: str, rows: int) -> None:
    """A table of numbers with few words in it, as meters and shops write them."""
    content = "nr;2025-01-01;naam\r\n" + "".join(f"{row};1,5;{text}\r\n" for row in range(rows))
    found = encoding_of(of(tmp_path, content.encode(encoding)))
    assert content.encode(encoding).decode(found.name) == content, found


def test_a_library_for_longer_texts_gets_fewer_right() -> None:
    """Why there is code of our own: charset-normalizer, asked for one of the same encodings."""
    from charset_normalizer import from_bytes

    wrong = []
    for encoding, texts in SHORT.items():
        for text in texts:
            content = f"nr;2025-01-01;naam\r\n0;1,5;{text}\r\n"
            best = from_bytes(content.encode(encoding), cp_isolation=list(SHORT)).best()
            if best is None or content.encode(encoding).decode(best.encoding) != content:
                wrong.append(text)
    total = sum(map(len, SHORT.values()))
    print(f"charset-normalizer: {len(wrong)} of {total} wrong")
    assert len(wrong) > total / 10, "it has become good enough: use it"


def test_what_is_no_text_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="the encoding is not recognised: write data.encoding=NAME, for instance cp1252"
    ):
        encoding_of(of(tmp_path, "日本語のテキスト、こんにちは".encode("shift-jis")))


def test_a_guess_shows_its_letters(tmp_path: Path) -> None:
    found = encoding_of(of(tmp_path, DUTCH.encode("cp1252")))
    assert found.title == "Windows-1252" and found.sample.startswith("één, ‘Mijn")


def test_a_damaged_byte_in_utf8_does_not_make_it_another_encoding(tmp_path: Path) -> None:
    path = of(tmp_path, "é\nü\n".encode() + b"\xff\n")
    assert encoding_of(path).name == "utf-8"
    fault = list(lines_of(path, "utf-8"))[2][1]
    assert isinstance(fault, DataError) and "a.csv:3: not UTF-8 (byte 0xff at 1 of the line)" in str(fault)


def test_letters_far_into_a_large_file_count(tmp_path: Path) -> None:
    path = of(tmp_path, b"x" * 3_000_000 + b"\n" + DUTCH.encode("cp1252"))
    assert encoding_of(path).name == "cp1252" and "één" in encoding_of(path).sample


def test_what_the_recipe_says_counts(tmp_path: Path) -> None:
    path = of(tmp_path, "é".encode())
    assert encoding_of(path, "latin-1").name == "iso8859-1"
    assert list(lines_of(path, "iso8859-1")) == [(1, "Ã©")]


def test_wide_lines_and_packed_files(tmp_path: Path) -> None:
    path = of(tmp_path, gzip.compress("a\né".encode("utf-16")), "a.csv.gz")
    assert encoding_of(path).name == "utf-16"
    assert list(lines_of(path, "utf-16")) == [(1, "a\n"), (2, "é")]
    with pytest.raises(DataError, match="damaged gzip"):
        encoding_of(of(tmp_path, b"not packed", "b.csv.gz"))
    packed = bytearray(gzip.compress(bytes(range(256)) * 4000))
    packed[len(packed) // 2] ^= 0xFF  # damaged in the middle, where zlib itself notices
    with pytest.raises(DataError, match="damaged gzip"):
        list(lines_of(of(tmp_path, bytes(packed), "c.jsonl.gz"), "utf-8"))
