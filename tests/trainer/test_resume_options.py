"""Options reach the ranks as words of their command line."""

from aitrain.trainer.resume_options import ResumeOptions


def test_words_for_the_ranks() -> None:
    assert ResumeOptions().words() == []
    assert ResumeOptions("20", True, True).words() == ["--changed-inputs", "--changed-rate", "--checkpoint", "20"]
