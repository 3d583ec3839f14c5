"""Proposes the meaning of a user's columns from common names in English, Dutch, German and French."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from aitrain.config.values import quoted
from aitrain.errors import DataError

COMMON = {
    "prompt": (
        "prompt question vraag frage question demande input instruction query user customer_message message request "
        "vraagstelling klantvraag kundenfrage anfrage eingabe invoer verzoek requete"
    ),
    "completion": (
        "completion answer antwoord antwort reponse response output reply agent_reply assistant solution "
        "beantwoording reactie uitvoer ausgabe oplossing loesung sortie"
    ),
    "text": (
        "text tekst texte body content inhoud inhalt contenu description omschrijving beschrijving beschreibung "
        "message bericht nachricht document comment opmerking bemerkung commentaire sentence zin satz phrase "
        "question vraag frage title titel titre subject onderwerp betreff"
    ),
    "label": (
        "label category categorie kategorie class klasse classe target department desk afdeling abteilung service "
        "topic type soort art team queue rubriek thema sujet"
    ),
    "query": "query question vraag frage demande prompt search zoekvraag suchanfrage recherche anchor",
    "positive": "positive answer antwoord antwort reponse passage document text tekst texte match",
    "chosen": "chosen preferred better gekozen beste bevorzugt gewaehlt choisi prefere accepted winner",
    "rejected": "rejected worse afgewezen slechter abgelehnt rejete refuse loser",
    "image": "image file filename path afbeelding bestand foto photo bild datei fichier picture",
    "time": "time date datetime timestamp tijd datum tijdstip zeit zeitstempel zeitpunkt heure date_heure utc",
    "value": "value waarde wert valeur measurement meting messwert mesure load verbruik verbrauch consommation",
    "entities": "entities entiteiten entitaten entitaeten entites spans annotations annotaties markierungen ner",
    "tokens": "tokens words woorden worter woerter mots",
    "labels": "labels tags ner_tags etiketten etiquettes",
    "system": "system systeem system_prompt instructions",
    "messages": "messages berichten conversation conversations dialog dialogue gesprek chat",
}
"""Name that aitrain reads -> common names of such a column, the most specific first."""


def proposed(columns: Iterable[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return a column for each wanted name; empty unless there is one for every name.

    Args:
        columns: Names of the columns.
        wanted: Names that aitrain reads.
    """
    free = list(columns)
    found: dict[str, str] = {}
    for name in wanted:
        common = COMMON.get(name, name).split()
        best = min(free, key=lambda column: _distance(column, common), default=None)
        if best is None or _distance(best, common) >= len(common) * 2:
            return {}
        found[name] = best
        free.remove(best)
    return found


def _distance(column: str, common: Sequence[str]) -> int:
    """Return how far a column's name is from the most specific one; full names come before words in them."""
    plain = _plain(column)
    words = plain.split("_")
    for at, name in enumerate(common):
        if plain == name:
            return at
    for at, name in enumerate(common):
        if name in words:
            return len(common) + at
    return 2 * len(common)


def _plain(name: str) -> str:
    folded = unicodedata.normalize("NFKD", name.casefold())
    return re.sub(r"[^a-z0-9]+", "_", "".join(c for c in folded if not unicodedata.combining(c))).strip("_")


def words(found: dict[str, str]) -> str:
    """Return the words for the command line that name columns.

    Args:
        found: Name that aitrain reads -> column.
    """
    return " ".join(_word(f"data.columns.{name}", column) for name, column in found.items())


def _word(key: str, value: str) -> str:
    if re.fullmatch(r"[\w./-]+", value) and value.lower() not in ("null", "true", "false"):
        return f"{key}={value}"
    if re.fullmatch(r"[\w./ -]+", value):
        return f"{key}={shlex.quote(value)}"
    return shlex.quote(f"{key}={quoted(value)}")


def missing_column(record: dict[str, Any], name: str, where: str, key: str = "") -> DataError:
    """Return the refusal of a record that lacks a field, with the words that name it if there is one like it.

    Args:
        record: The record.
        name: The missing field.
        where: Place of the record.
        key: Key that names this field, for instance `data.text_field`; empty if only `data.columns` does.
    """
    there = ", ".join(map(repr, record)) or "none"
    guess = proposed([column for column in record if isinstance(column, str)], [name])
    advice = words(guess) if guess else f"{key}=COLUMN" if key else f"data.columns.{name}=COLUMN"
    return DataError(f"{where}: no column or key {name!r} (here: {there}): write {advice}")
