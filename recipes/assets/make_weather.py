"""Make the asset weather-hours from a typical year of hourly weather (TMY3, NREL), which the package pvlib carries.

pip download --no-deps pvlib==0.16.1 && unzip pvlib-*.whl 'pvlib/data/723170TYA.CSV'
python recipes/assets/make_weather.py pvlib/data/723170TYA.CSV recipes/assets/weather-hours
"""

from __future__ import annotations

import argparse
import csv
from datetime import datetime, timedelta
from pathlib import Path

COLUMNS = {
    "sun": "ETR (W/m^2)",
    "irradiance": "GHI (W/m^2)",
    "temperature": "Dry-bulb (C)",
    "dew_point": "Dew-point (C)",
    "wind": "Wspd (m/s)",
}
FIRST = datetime(2023, 1, 1)


def main() -> None:
    """Read the file and the target folder from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("to", type=Path)
    arguments = parser.parse_args()
    with open(arguments.source, newline="") as file:
        next(file)
        rows = list(csv.DictReader(file))
    assert len(rows) == 8760, "a year of hours"
    arguments.to.mkdir(exist_ok=True)
    with open(arguments.to / "year.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", *COLUMNS])
        for hour, row in enumerate(rows):
            time = FIRST + timedelta(hours=hour)  # the months of a typical year are of different years
            writer.writerow([f"{time:%Y-%m-%dT%H:%M}", *(f"{float(row[name]):g}" for name in COLUMNS.values())])


if __name__ == "__main__":
    main()
