"""Time limits, read and written as Slurm does, and the notice before them."""

import pytest

from aitrain.errors import RecipeError
from aitrain.launch.times import default_minutes, minutes, notice_s, slurm_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30),
        ("30:00", 30),
        ("30:01", 31),  # never less than was asked for
        ("04:00:00", 240),
        ("1:30:00", 90),
        ("2-0", 2880),
        ("1-12:30", 2190),
        ("5-00:00:00", 7200),
        ("0:00:30", 1),
    ],
)
def test_every_notation_of_sbatch_is_read(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "4h", "-1", "1:2:3:4", "00:00:00", "0", "1.5", "4:00:00 h"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RecipeError, match="for instance 04:00:00"):
        minutes(text)


@pytest.mark.parametrize(
    ("given", "text"), [(5, "00:05:00"), (240, "04:00:00"), (1440, "1-00:00:00"), (7201, "5-00:01:00")]
)
def test_limits_are_written_as_slurm_reads_them_back(given: int, text: str) -> None:
    assert slurm_time(given) == text and minutes(text) == given


def test_a_job_that_names_no_limit_gets_a_day_or_what_is_allowed() -> None:
    assert [default_minutes(hours) for hours in (None, 120, 12, 0.5)] == [1440, 1440, 720, 30]


def test_the_notice_grows_with_the_checkpoint() -> None:
    assert notice_s(None) == notice_s(1_000_000) == 300
    # 8e9 weights x 16 bytes at 1 GB/s are 128 s, and 180 s for the step: 308 s, rounded up to whole minutes
    assert notice_s(8_000_000_000) == 360
    assert notice_s(70_000_000_000) == 60 * 22
