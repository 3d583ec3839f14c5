"""Words that users of other tools type lead to our keys, and every key that is named exists."""

import pytest

from aitrain.config import GROUPS
from aitrain.config.frozen import from_plain, to_plain
from aitrain.config.manual import all_keys
from aitrain.config.synonyms import _BECAUSE, _ELSEWHERE, _OURS, RENAMED, question, right_name
from aitrain.errors import RecipeError
from aitrain.recipe import compose

KEYS = [row.key for row in all_keys()]


def test_what_is_named_exists() -> None:
    assert set(_ELSEWHERE) <= {*KEYS, *GROUPS} and set(_BECAUSE) <= set(_ELSEWHERE)
    words = [word for words in _ELSEWHERE.values() for word in words.split()]
    assert len(words) == len(set(words)) == len(_OURS), "a word leads to one key"


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("trainer.learning_rate", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("gradient_accumulation_steps", "trainer.micro_batch_samples"),
        ("base-modle", "model.path"),
        ("base_model", "model.path"),
        ("per_device_train_batch_size", "trainer.micro_batch_samples"),
        ("train_micro_batch_size_per_gpu", "trainer.micro_batch_samples"),
        ("train_batch_size", "trainer.global_batch_samples"),
        ("num_train_epochs", "trainer.max_epochs"),
        ("num_train_epoch", "trainer.max_epochs"),
        ("accumulate_grad_batches", "trainer.micro_batch_samples"),
        ("gradient_clip_val", "optim.max_grad_norm"),
        ("trainer.gradient_clip_val", "optim.max_grad_norm"),
        ("warmup_ratio", "schedule.warmup_steps"),
        ("lr_scheduler_type", "schedule"),
        ("max_seq_length", "data.sequence_tokens"),
        ("cutoff_len", "data.sequence_tokens"),
        ("output_dir", "run.dir"),
        ("save_steps", "checkpoint.every_steps"),
        ("lora_r", "adapter.rank"),
        ("lora_alpha", "adapter.alpha"),
        ("report_to", "logger"),
        ("zero_stage", "strategy"),
        ("bf16", "trainer.precision"),
        ("trust_remote_code", "model.vetted_code_sha256"),
        # the right word in the wrong group, and slips of the finger
        ("trainer.lr", "optim.lr"),
        ("optim.max_steps", "trainer.max_steps"),
        ("optim.weight_dcay", "optim.weight_decay"),
        ("trainer.max_stps", "trainer.max_steps"),
        ("data.sequence_token", "data.sequence_tokens"),
    ],
)
def test_right_names(written: str, ours: str) -> None:
    assert right_name(written, KEYS) == ours


@pytest.mark.parametrize("before", RENAMED)
def test_a_name_of_before_is_refused_with_the_one_of_now(before: str) -> None:
    with pytest.raises(RecipeError, match=f"{before} is not a key: did you mean {RENAMED[before]}"):
        compose("sft_full", ["model.path=m", "data.path=d", f"{before}=4"])
    frozen = to_plain(compose("sft_full", ["model.path=m", "data.path=d"]))
    group, word = before.split(".")
    frozen[group][word] = 4
    with pytest.raises(RecipeError, match=f"{before} is not a key: did you mean {RENAMED[before]}"):
        from_plain(frozen)


def test_what_means_nothing_leads_nowhere() -> None:
    assert right_name("xyzzy_plugh", KEYS) is None


def test_the_question_explains_where_a_word_would_mislead() -> None:
    assert question("optim.lr") == "did you mean optim.lr?"
    assert "gradient accumulation follows from it" in question("trainer.micro_batch_samples")


@pytest.mark.parametrize("word", ["trainer.learning_rate=1", "gradient_accumulation_steps=2", "base-modle=x"])
def test_a_recipe_is_answered_with_our_key(word: str) -> None:
    with pytest.raises(RecipeError) as caught:
        compose("sft_full", ["model.path=m", "data.path=d", word])
    ours = right_name(word.split("=")[0], KEYS)
    assert f"{word.split('=')[0]} is not a key: did you mean {ours}" in str(caught.value)
