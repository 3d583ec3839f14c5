"""Recipes: composed, refused with every fault at once, frozen, read back, amended and swept."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from aitrain.commands import OVERRIDES
from aitrain.config import GROUPS, RunConfig
from aitrain.config.adapter import Qlora
from aitrain.config.custom import UserClass
from aitrain.config.optim import AdamW, Muon
from aitrain.config.source import names
from aitrain.config.trainer import AUTO, Precision
from aitrain.errors import RecipeError
from aitrain.recipe import amend, compose, freeze, load

GIVEN = ["model.path=m", "data.path=d.jsonl"]


def faults_of(*overrides: str, recipe: str = "sft_lora") -> list[str]:
    with pytest.raises(RecipeError) as caught:
        compose(recipe, [*GIVEN, *overrides])
    return caught.value.faults


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_option() -> None:
    config = compose("sft_lora", [*GIVEN, "optim.lr=1e-3", "trainer.precision=fp32"])
    assert isinstance(config, RunConfig) and isinstance(config.optim, AdamW)
    assert (config.optim.lr, config.optim.eps) == (1e-3, 1e-8)
    assert config.trainer.max_epochs == AUTO and config.trainer.precision is Precision.fp32
    assert compose("sft_lora", [*GIVEN, "optim.lr=1", "optim.lr=2"]).optim.lr == 2.0


def test_an_option_brings_its_own_keys_and_values() -> None:
    config = compose("sft_full", [*GIVEN, "optim=muon", "optim.nesterov=false"])
    assert isinstance(config.optim, Muon) and config.optim.nesterov is False
    config = compose("continued_pretraining", [*GIVEN, "optim=sgd"])
    assert config.optim.weight_decay == 0.1, "a value in the recipe wins over the option's"


def test_a_run_is_named_after_its_recipe(tmp_path: Path) -> None:
    assert compose("sft_lora", GIVEN).run.name == "sft_lora"
    assert compose("sft_lora", [*GIVEN, "run.name=other"]).run.name == "other"
    path = write(tmp_path, "defaults: [sft_lora, _self_]\n")
    assert compose(path, GIVEN).run.name == "mine"


def test_a_recipe_builds_on_others(tmp_path: Path) -> None:
    text = "defaults: [sft_lora, _self_]\noptim: {lr: 0.5, eps: 0.25}\nseed: 7\ntrainer: {max_epochs: 3}\n"
    write(tmp_path, text, "parent.yaml")
    child = write(tmp_path, "defaults: [parent, override adapter: qlora, _self_]\noptim: {lr: 0.75}\n")
    config = compose(child, GIVEN)
    assert isinstance(config.adapter, Qlora)
    assert (config.optim.lr, config.optim.eps, config.seed, config.trainer.max_epochs) == (0.75, 0.25, 7, 3.0)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optim.lrr=1", "optim.lrr is not a key: did you mean optim.lr?"),
        ("optm.lr=1", "optm.lr is not a key: did you mean optim.lr?"),
        ("lr=1", "lr is not a key: did you mean optim.lr?"),
        ("max_step=1", "max_step is not a key: did you mean trainer.max_steps?"),
        ("trainer.max-steps=1", "trainer.max-steps is not a key: did you mean trainer.max_steps?"),
        ("xyzzy=1", "xyzzy is not a key: the groups are seed, run, task"),
        (
            "optim=adam",
            "optim=adam is not an option of optim: did you mean adamw? Choose from adamw, adamw_8bit, muon, sgd",
        ),
        ("strategy=zero1", "did you mean deepspeed_zero1?"),
        ("adapter=null", "adapter=null is not an option of adapter: "),
        ("optim.nesterov=true", "optim.nesterov belongs to optim=muon, but this run has optim=adamw"),
        (
            "trainer.max_steps=abc",
            "trainer.max_steps=abc is not a whole number: write for instance trainer.max_steps=100",
        ),
        ("data.workers=1.5", "data.workers=1.5 is not a whole number"),
        ("optim.lr=abc", "optim.lr=abc is not a float: write for instance optim.lr=2e-5"),
        ("optim.lr=true", "optim.lr=true is not a float"),
        ("optim.lr=null", "optim.lr=null: a value is required; write for instance optim.lr=2e-5"),
        ("optim.lr=[1]", "optim.lr=[1] is not a float"),
        ("data.shuffle=maybe", "data.shuffle=maybe is neither true nor false: write for instance data.shuffle=true"),
        ("trainer.precision=fp23", "trainer.precision=fp23 is not one of auto, fp32, bf16: did you mean fp32?"),
        (
            "optim.betas=[0.9,x]",
            "optim.betas=[0.9,x] is not a list of floats: write for instance optim.betas=[0.9,0.95]",
        ),
        ("optim.betas=0.9", "optim.betas=0.9 is not a list of floats"),
        ("adapter.target_modules=[1]", "adapter.target_modules=[1] must be text, but it reads as a number"),
        ("trainer=5", "trainer=5: trainer is a group of keys; `aitrain show trainer`"),
        ("+optim.lr=1", "+ is refused, because it would let a misspelt key pass: write optim.lr=1"),
        ("++optim.lr=1", "++ is refused"),
        ("~optim.lr", "~ is refused, because keys cannot be removed: write optim.lr=null"),
        ("optim@other=adamw", "@ is refused"),
        ("optim.lr", "optim.lr is not key=value"),
        ("data.path=a=b", "data.path=a=b cannot be read: put the value in quotes, 'data.path=\"a=b\"'"),
        ("seed=1,2", "seed=1,2 lists alternatives, which `check`, `train` and `submit` run with -m: give one, or"),
        ("run.name=${nope}", "run.name: its ${...} cannot be resolved"),
        ("run.name=${oc.env:AITRAIN_NO_SUCH}", "Environment variable 'AITRAIN_NO_SUCH' not found"),
        ("model.path=???", "model.path is missing: write model.path=..., a Hugging Face folder"),
        ("seed=-1", "seed=-1 must be 0 or more"),
        ("run.name=a/b", "run.name='a/b' must be a plain name"),
        ("model.path=''", "model.path='' is empty"),
        ("data.sequence_tokens=1", "data.sequence_tokens=1 must be at least 2"),
        ("data.workers=-1", "data.workers=-1 must be 0 or more"),
        (
            "data.validation_samples=0",
            "data.validation_samples=0 must be above 0: write a number, or data.validation_samples=auto",
        ),
        ("adapter.rank=0", "adapter.rank=0 must be at least 1"),
        ("adapter.alpha=0", "adapter.alpha=0.0 must be above 0"),
        ("adapter.dropout=1", "adapter.dropout=1.0 must be at least 0 and below 1"),
        ("adapter.target_modules=[]", "adapter.target_modules=[] is empty"),
        ("optim.lr=0", "optim.lr=0.0 must be above 0"),
        ("optim.weight_decay=-1", "optim.weight_decay=-1.0 must be 0 or more"),
        ("optim.max_grad_norm=0", "optim.max_grad_norm=0.0 must be above 0"),
        ("optim.betas=[0.9]", "optim.betas=[0.9] must be two numbers"),
        ("schedule.warmup_steps=-1", "schedule.warmup_steps=-1 must be 0 or more"),
        ("schedule.min_lr_ratio=2", "schedule.min_lr_ratio=2.0 must be between 0 and 1"),
        ("trainer.max_epochs=null", "trainer.max_steps and trainer.max_epochs are both null"),
        ("trainer.max_steps=0", "trainer.max_steps=0 must be at least 1"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 must be above 0: write a number, or trainer.max_epochs=auto"),
        ("trainer.devices=0", "trainer.devices=0 must be at least 1"),
        (
            "trainer.devices=3 trainer.global_batch_samples=32",
            "trainer.global_batch_samples=32 is not a multiple of 3 devices x 1 per device: write 30 or 33",
        ),
        ("cluster.time_min=0", "cluster.time_min=0 must be at least 1"),
        ("cluster.signal_s=0", "cluster.signal_s=0 must be at least 1"),
        ("checkpoint.keep=0", "checkpoint.keep=0 must be at least 1"),
        ("checkpoint.every_steps=0", "checkpoint.every_steps=0 must be at least 1"),
        ("evaluate.max_new_tokens=0", "evaluate.max_new_tokens=0 must be at least 1"),
        ("evaluate.min_improvement=-1", "evaluate.min_improvement=-1.0 must be 0 or more"),
        ("evaluate.patience=2", "evaluate.patience=2 has no effect without evaluate.every_steps"),
        ("evaluate.every_steps=5 data.validation_samples=null", "evaluate.every_steps=5 has no held-out data"),
        ("task=pretrain", "task=pretrain needs data=text"),
        ("data=text", "task=sft needs data=records"),
    ],
)
def test_each_kind_of_mistake_has_one_sentence_that_names_its_key(word: str, says: str) -> None:
    found = faults_of(*word.split())
    assert len(found) == 1, found
    assert says in found[0]
    assert "full_key" not in found[0] and "object_type" not in found[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["data.validation_samples=5", "data.validation_path=v"],
            "data.validation_samples=5 has no effect together with",
        ),
        (["adapter=qlora", "trainer.accelerator=cpu"], "adapter=qlora needs a GPU"),
        (["optim=adamw_8bit", "trainer.accelerator=cpu"], "optim=adamw_8bit needs a GPU"),
        (["optim=adamw_8bit", "strategy=fsdp"], "strategy=fsdp shards them"),
        (["optim=adamw_8bit", "strategy=deepspeed_zero2"], "write strategy=ddp or optim=adamw"),
        (
            ["model.attention=flash_attention_2", "trainer.accelerator=cpu"],
            "model.attention=flash_attention_2 needs a GPU",
        ),
        (["adapter=qlora", "strategy=fsdp"], "strategy=fsdp cannot shard them"),
        (["optim=muon", "strategy=fsdp"], "optim=muon needs unsharded matrices"),
        (["optim=muon", "optim.momentum=1"], "optim.momentum=1.0 must be"),
        (["optim=muon", "optim.orthogonalise_steps=0"], "optim.orthogonalise_steps=0 must be"),
        (["optim=muon", "optim.adamw_lr=0"], "optim.adamw_lr=0.0 must be"),
        (["optim=sgd", "optim.momentum=1"], "optim.momentum=1.0 must be"),
        (["cluster.time_min=5", "cluster.signal_s=300"], "is not less than cluster.time_min=5: write less than 300"),
        (["schedule=wsd", "schedule.decay_steps=-1"], "schedule.decay_steps=-1 must be"),
    ],
)
def test_each_rule_across_keys_has_one_sentence(words: list[str], says: str) -> None:
    found = faults_of(*words)
    assert len(found) == 1 and says in found[0], found


def test_all_faults_are_told_at_once_and_each_once() -> None:
    found = faults_of("optim=adam", "optim.lrr=1", "trainer.precision=x", "seed=-1", "~a", "b", "data.path=???")
    assert len(found) == 7, found


def test_a_misspelt_key_is_not_also_missing() -> None:
    with pytest.raises(RecipeError) as caught:
        compose("sft_lora", ["model.pth=m", "data.path=d"])
    assert caught.value.faults == ["model.pth is not a key: did you mean model.path?"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("defaults: [base, _self_]\noptim:\n  lrr: 1\n", "mine.yaml:3: optim.lrr is not a key: did you mean optim.lr?"),
        ("defaults: [base, _self_]\noptim:\n  lr: abc\n", "mine.yaml:3: optim.lr=abc is not a float"),
        (
            "defaults: [base, _self_]\nrun:\n  name: 3\n",
            "mine.yaml:3: run.name=3 must be text, but it reads as a number",
        ),
        (
            "defaults: [base, _self_]\noptim: muon\n",
            "mine.yaml:2: optim: muon chooses an option: write `- override optim",
        ),
        (
            "defaults: [base, override optim: adam, _self_]\n",
            "mine.yaml:1: optim=adam is not an option of optim: did you mean",
        ),
        (
            "defaults: [base, override optm: adamw, _self_]\n",
            "optm in the defaults list is not a group with options: did you",
        ),
        ("defaults: [base, override trainer: x, _self_]\n", "trainer in the defaults list is not a group with options"),
        ("defaults: [base, optim: adamw, _self_]\n", "write `- override optim: adamw`"),
        ("defaults: [_self_, base]\n", "_self_ must come last"),
        ("defaults: [_self_]\n", "the defaults list has no base"),
        ("seed: 1\n", "the defaults list is missing"),
        ("defaults: [mine, _self_]\n", "mine builds on itself"),
        ("defaults: [sft_lra, _self_]\n", "recipe sft_lra is not known: did you mean sft_lora?"),
        ("defaults: [base, _self_]\nseed: [1\n", "mine.yaml:3: broken YAML"),
        ("defaults: [base, _self_]\nseed: 1\nseed: 2\n", "mine.yaml:3: broken YAML: found duplicate key seed"),
        ("", "is empty: begin the recipe with"),
        ("- a\n", "is not a recipe"),
        ("a\n", "is not a recipe"),
    ],
)
def test_each_mistake_in_a_recipe_file_names_file_and_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        compose(write(tmp_path, text), [*GIVEN, "trainer.max_steps=1"])
    assert len(caught.value.faults) == 1, caught.value.faults
    assert says in caught.value.faults[0]


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("sft_lra", "recipe sft_lra is not known: did you mean sft_lora? Choose from"),
        ("some/where/quickstrt.yaml", "does not exist: did you mean the recipe quickstart?"),
        ("/", "is a folder, not a recipe"),
    ],
)
def test_a_recipe_that_is_not_there_names_the_nearest(recipe: str, says: str) -> None:
    with pytest.raises(RecipeError, match="recipe") as caught:
        compose(recipe)
    assert says in str(caught.value)


def test_values_keep_the_characters_the_user_typed() -> None:
    config = compose(
        "sft_lora",
        [*GIVEN, "model.allow_network=true", "model.revision=12e4567", "run.name='a, b'", r"task.system_prompt=\${x}"],
    )
    assert (config.model.revision, config.run.name) == ("12e4567", "a, b")
    assert config.task.system_prompt == "${x}"  # type: ignore[attr-defined]


def test_references_take_the_type_of_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "12")
    config = compose("sft_lora", [*GIVEN, "trainer.max_epochs=null", "trainer.max_steps=${oc.env:STEPS}"])
    assert config.trainer.max_steps == 12


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in GROUPS[g]])
def test_every_option_is_frozen_and_read_back_exactly(tmp_path: Path, group: str, option: str) -> None:
    words = [f"{group}={option}"]
    if option in ("pretrain", "text", "custom_text"):
        words = ["task=pretrain", f"data={'text' if option == 'pretrain' else option}"]
    if issubclass(GROUPS[group][option], UserClass):
        words += [f"{group}.file=mine.py", f"{group}.class=Mine", f"{group}.options={{a: 1, b: [x, y]}}"]
    if (group, option) == ("task", "custom"):
        words.append("model.path=null")
    recipe = tmp_path / "plain.yaml"
    recipe.write_text("defaults: [base, _self_]\ntrainer: {max_steps: 1}\n")
    if option in ("classify_text", "labelled"):
        words = ["task=classify_text", "data=labelled"]
    if option in ("classify_image", "images"):
        words = ["task=classify_image", "data=images"]
    if option in ("forecast", "series"):
        words = ["task=forecast", "data=series", "model.path=null"]
    if option in ("tag_tokens", "tagged"):
        words = ["task=tag_tokens", "data=tagged"]
    if option in ("embeddings", "pairs"):
        words = ["task=embeddings", "data=pairs"]
    if option in ("preference", "preferences"):
        words = ["task=preference", "data=preferences"]
    if option == "reranker":
        words = ["task=reranker", "data=pairs"]
    if option == "files":
        words += ["task=custom", "task.file=mine.py", "task.class=Mine"]
    config = compose(str(recipe), ["model.path=m", "data.path=d.jsonl", *words])
    assert type(getattr(config, group)) is GROUPS[group][option]
    freeze(config, tmp_path / "run.yaml")
    assert load(tmp_path / "run.yaml") == config
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())[group]["option"] == option


@pytest.mark.parametrize(
    "text", ["1e5", "null", "yes", "${x}", r"\${x}", "a\nb", "é 字", "", " x ", "0012", "???x", "'\""]
)
def test_any_text_survives_freezing(tmp_path: Path, text: str) -> None:
    config = compose("sft_lora", GIVEN)
    config.evaluate.prompts = [text, "b"]
    config.task = dataclasses.replace(config.task, system_prompt=text)
    freeze(config, tmp_path / "run.yaml")
    assert load(tmp_path / "run.yaml") == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("lr: 0.0002", "lrr: 0.0002"), "run.yaml: optim.lrr is not a key: did you mean optim.lr?"),
        (("lr: 0.0002", "lr: x"), "run.yaml: optim.lr=x is not a float"),
        (("option: adamw", "option: adam"), "run.yaml: optim.option=adam is not an option of optim"),
        (("optim:", "optim: ["), "run.yaml cannot be read"),
    ],
)
def test_a_damaged_run_yaml_is_refused(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    freeze(compose("sft_lora", GIVEN), tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text((tmp_path / "run.yaml").read_text().replace(*change))
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "run.yaml")
    assert says in str(caught.value)


def test_a_resumed_run_may_change_only_what_keeps_the_promise() -> None:
    config = compose("sft_lora", [*GIVEN, "data.validation_samples=5", "trainer.global_batch_samples=32"])
    longer = amend(
        config, ["trainer.max_epochs=5", "trainer.devices=2", "checkpoint.keep=3", "logger=wandb", "logger.project=p"]
    )
    assert (longer.trainer.max_epochs, longer.trainer.devices, longer.checkpoint.keep) == (5.0, 2, 3)
    assert longer.logger == GROUPS["logger"]["wandb"](project="p")
    other = amend(config, ["strategy=fsdp", "strategy.reshard_after_forward=false", "trainer.accelerator=cpu"])
    assert other.strategy == GROUPS["strategy"]["fsdp"](reshard_after_forward=False)
    assert config.trainer.devices is None, "the frozen configuration itself stays"
    for word, says in [
        ("optim.lr=1", "optim.lr cannot change when a run is resumed"),
        ("checkpoint.path=c", "checkpoint.path cannot change when a run is resumed, because its checkpoints are there"),
        ("seed=1", "seed cannot change"),
        ("adapter=dora", "adapter cannot change"),
        ("strategy=fsdq", "strategy=fsdq is not an option of strategy"),
        ("trainer.precision=fp32", "trainer.precision cannot change"),
        ("trainer.global_batch_samples=64", "cannot change"),
        ("trainer.max_epoch=4", "did you mean trainer.max_epochs?"),
        ("trainer.max_epochs=x", "is not a float"),
        ("trainer.devices=3", "is not a multiple of 3 devices"),
        ("trainer.devices=1,2", "lists alternatives"),
        ("logger=wandbb", "logger=wandbb is not an option"),
    ]:
        with pytest.raises(RecipeError) as caught:
            amend(config, [word])
        assert says in str(caught.value)


def test_letters_beyond_ascii_need_no_quotes() -> None:
    words = ["data.columns.prompt=Anfrage für uns", "data.columns.completion=réponse", "data.path=daten/über.csv"]
    config = compose("sft_lora", [*GIVEN, *words])
    assert config.data.columns == {"prompt": "Anfrage für uns", "completion": "réponse"}  # type: ignore[attr-defined]
    assert config.data.path == "daten/über.csv"
    with pytest.raises(RecipeError, match="cannot be read: put the value in quotes"):
        compose("sft_lora", [*GIVEN, "data.columns={prompt: über}"])


def test_a_run_used_on_a_file_may_change_how_that_is_read() -> None:
    config = amend(compose("sft_lora", [*GIVEN, "data.header_row=3"]), ["data.header_row=1"], for_file=True)
    assert config.data.header_row == 1  # type: ignore[attr-defined]
    for word, says in [
        ("data.header_row=0", "data.header_row=0 must be"),
        (
            "trainer.devices=2",
            "trainer.devices belongs to the run, whose recipe is frozen; here you can give data.enco",
        ),
        ("strategy=fsdp", "strategy belongs to the run"),
        ("data.headr_row=1", "did you mean data.header_row?"),
    ]:
        with pytest.raises(RecipeError) as caught:
            amend(config, [word], for_file=True)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("words", "rate", "told"),
    [
        (["optim=muon"], 0.02, True),
        (["optim=sgd"], 2e-5, True),
        (["optim=muon", "optim.lr=0.01"], 0.01, False),
        (["optim=adamw_8bit"], 2e-4, False),  # the same rule of AdamW
        ([], 2e-4, False),
    ],
)
def test_a_learning_rate_is_not_carried_over_to_another_optimizer(
    words: list[str], rate: float, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose("sft_lora", ["model.path=m", "data.path=d.jsonl", *words])
    assert config.optim.lr == rate
    says = (
        f"optim.lr=2e-4 in the recipe is meant for optim=adamw: {words[0] if words else ''} starts from its own default"
    )
    assert any(says in record.message for record in caplog.records) == told


def test_a_recipe_that_chooses_optimizer_and_rate_keeps_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "defaults: [base, override optim: muon, _self_]\nmodel: {path: m}\ndata: {path: d.jsonl}\n"
        "optim: {lr: 0.005}\ntrainer: {max_steps: 1}\n"
    )
    assert compose(str(path)).optim.lr == 0.005 and not caplog.records


@pytest.mark.parametrize("recipe", names())
def test_what_the_help_of_train_shows_works_with_every_recipe(recipe: str) -> None:
    words = OVERRIDES.split("for instance ")[1].split()
    assert len(words) == 2
    given = ["data.path=d.jsonl", *([] if recipe == "forecast_timeseries" else ["model.path=m"])]
    config = compose(recipe, [*given, *words])
    assert config.trainer.max_steps == 100 and isinstance(config.optim, Muon)
    assert compose(recipe, [*given, "trainer.max_steps=8"]).trainer.max_steps == 8
