"""What keys are called elsewhere: the words of Hugging Face, Lightning, DeepSpeed and LLaMA-Factory users, and ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from aitrain.config.values import nearest

_ELSEWHERE = {
    # the optimizer
    "optim.lr": "learning_rate base_lr max_lr lr_peak",
    "optim.betas": "adam_beta1 adam_beta2 beta1 beta2 adam_betas",
    "optim.eps": "adam_epsilon epsilon adam_eps",
    "optim.max_grad_norm": "gradient_clip_val gradient_clipping grad_clip clip_grad_norm max_norm",
    "optim": "optimizer optimizer_type optim_name",
    "schedule": "lr_scheduler_type lr_scheduler scheduler scheduler_type",
    "schedule.warmup_steps": "warmup_ratio warmup_num_steps num_warmup_steps warmup lr_warmup_steps",
    "schedule.min_lr_ratio": "min_lr min_lr_rate lr_min",
    # length and batch
    "trainer.max_epochs": "num_train_epochs num_epochs epochs n_epochs",
    "trainer.max_steps": "num_steps train_iters total_steps num_training_steps",
    "trainer.global_batch_samples": "batch_size train_batch_size global_batch_size total_batch_size",
    "trainer.micro_batch_samples": (
        "per_device_train_batch_size train_micro_batch_size_per_gpu micro_batch_size per_gpu_batch_size "
        "gradient_accumulation_steps accumulate_grad_batches grad_accum gradient_accumulation"
    ),
    # arithmetic and devices
    "trainer.precision": "bf16 fp16 mixed_precision torch_dtype dtype tf32",
    "trainer.activation_checkpointing": "gradient_checkpointing use_gradient_checkpointing checkpoint_activations",
    "trainer.devices": "num_gpus gpus n_gpus nproc_per_node num_processes ntasks_per_node",
    "trainer.nodes": "num_nodes nnodes num_machines",
    "strategy": "deepspeed zero_stage zero_optimization stage fsdp fsdp_config ddp distributed_strategy",
    # the model
    "model.path": (
        "base_model model_name_or_path pretrained_model_name_or_path model_name model_id model_path checkpoint_dir "
        "hf_model"
    ),
    "model.attention": "attn_implementation attention_implementation flash_attn flash_attention use_flash_attention_2",
    "model.vetted_code_sha256": "trust_remote_code",
    "model.chat_template": "template chat_template_path",
    "adapter": "lora peft use_lora use_peft finetuning_type peft_type load_in_4bit quantization_bit",
    "adapter.rank": "lora_r r lora_rank",
    "adapter.alpha": "lora_alpha",
    "adapter.dropout": "lora_dropout",
    "adapter.target_modules": "lora_target lora_target_modules lora_modules",
    # the data
    "data.path": (
        "dataset datasets dataset_name dataset_path train_file train_files train_data data_path data_dir train_path"
    ),
    "data.validation_path": "validation_file eval_file eval_dataset val_data valid_data val_path eval_path test_file",
    "data.validation_samples": "val_size val_set_size test_size validation_split max_eval_samples",
    "data.sequence_tokens": (
        "max_seq_length max_length cutoff_len sequence_len seq_length seq_len block_size model_max_length max_seq_len"
    ),
    "data.text_field": "dataset_text_field text_column",
    "data.workers": "dataloader_num_workers num_workers",
    "task.system_prompt": "system_prompt default_system system_message",
    # saving and measuring
    "run.dir": "output_dir default_root_dir save_dir work_dir log_dir",
    "run.name": "run_name experiment_name exp_name",
    "checkpoint.every_steps": "save_steps every_n_train_steps checkpoint_interval save_interval save_freq",
    "checkpoint.keep": "save_total_limit save_top_k keep_last",
    "evaluate.every_steps": "eval_steps val_check_interval eval_interval check_val_every_n_epoch evaluation_strategy",
    "evaluate.micro_batch_samples": "per_device_eval_batch_size eval_batch_size val_batch_size",
    "evaluate.patience": "early_stopping_patience early_stopping",
    "evaluate.max_new_tokens": "generation_max_length max_tokens",
    "logger": "report_to loggers tracker log_with use_wandb",
    "logger.project": "wandb_project project_name",
    "seed": "random_seed data_seed torch_seed seed_everything",
}
"""Our key, or group with a choice -> what it is called elsewhere."""

_OURS = {word: ours for ours, words in _ELSEWHERE.items() for word in words.split()}

RENAMED = {
    "trainer.global_batch_sequences": "trainer.global_batch_samples",
    "trainer.micro_batch_sequences": "trainer.micro_batch_samples",
    "evaluate.micro_batch_sequences": "evaluate.micro_batch_samples",
}
"""Keys that used to have another name."""

_BECAUSE = {
    "trainer.micro_batch_samples": (
        "gradient accumulation follows from it and trainer.global_batch_samples, which is the batch of one step"
    ),
    "schedule.warmup_steps": "a number of steps; null = 3 % of the run",
    "model.vetted_code_sha256": "code runs only when its checksum is given; `aitrain check` prints it",
    "data.validation_samples": "a number of samples",
}
"""Explanations for words that would mislead on their own."""


def right_name(name: str, keys: Iterable[str]) -> str | None:
    """Return the key that a user means by an unknown name, or None.

    Args:
        name: What the user wrote, with or without a group before it.
        keys: The keys there are.
    """
    known = list(keys)
    if name in RENAMED:
        return RENAMED[name]
    word = name.rsplit(".", 1)[-1].lower().replace("-", "_")
    ends = [key for key in known if key.rsplit(".", 1)[-1] == word]
    if len(ends) == 1:  # the right word in the wrong group
        return ends[0]
    if word in _OURS:
        return _OURS[word]
    return nearest(name, known) if _is_close(name, known) else _near_word(word) or nearest(name, known)


def _is_close(name: str, keys: list[str]) -> bool:
    """Return whether a name is a misspelling of one of ours."""
    return bool(difflib.get_close_matches(name.lower(), keys, n=1, cutoff=0.88))


def _near_word(word: str) -> str | None:
    close = difflib.get_close_matches(word, _OURS, n=1, cutoff=0.8)
    return _OURS[close[0]] if close else None


def question(ours: str) -> str:
    """Return the question that names a key of ours.

    Args:
        ours: From `right_name`.
    """
    return f"did you mean {ours}{f' ({_BECAUSE[ours]})' if ours in _BECAUSE else ''}?"
