"""Tips for what a config refuses: unknown keys, values of a wrong type, words that are not overrides."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LAMBDA = "objective.world_model_coeff"

_OTHER_NAMES = {
    **dict.fromkeys(("lambda", "lam", "coeff", "env_coeff", "env_weight", "aux_coeff", "world_model_weight"), _LAMBDA),
    **dict.fromkeys(("kl", "kl_coef", "kl_weight", "beta"), "objective.kl_coeff"),
    **dict.fromkeys(("clip", "cliprange", "epsilon"), "objective.clip_low"),
    **dict.fromkeys(("learning_rate", "step_size"), "optim.lr"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_scheduler_type"), "optim.lr_schedule"),
    **dict.fromkeys(("max_grad_norm", "clip_grad"), "optim.grad_clip"),
    **dict.fromkeys(("warmup", "num_warmup_steps"), "optim.warmup_steps"),
    **dict.fromkeys(("micro_batch_size", "max_batch_tokens"), "optim.token_budget"),
    **dict.fromkeys(("batch_size", "train_batch_size"), "rollout.tasks_per_step"),
    **dict.fromkeys(("num_generations", "num_rollouts", "rollouts", "n_rollouts"), "rollout.group_size"),
    **dict.fromkeys(("max_new_tokens", "max_completion_length", "rollout.max_tokens"), "rollout.max_action_tokens"),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_steps", "num_steps", "iterations"), "steps"),
    **dict.fromkeys(("out", "outdir", "out_dir", "output"), "output_dir"),
    **dict.fromkeys(("name", "run"), "run_name"),
    **dict.fromkeys(("wandb", "tracker", "report_to", "logger"), "track"),
    **dict.fromkeys(("save_every", "save_steps"), "checkpoint.every"),
    **dict.fromkeys(("eval_every", "eval_steps", "evaluation.interval"), "evaluation.every"),
    **dict.fromkeys(("model.name", "model.id", "model_name", "model_path", "model_name_or_path"), "model.path"),
    **dict.fromkeys(("bf16", "precision", "torch_dtype"), "model.dtype"),
    **dict.fromkeys(("env", "envs"), "environment"),
    **dict.fromkeys(("server", "address", "base_url"), "environment.url"),
    **dict.fromkeys(("gpu", "cuda", "cpu"), "device"),
    **dict.fromkeys(("random_seed", "seeds"), "seed"),
    **dict.fromkeys(("lora", "lora_rank"), "model.lora.rank"),
}
"""Key of each name by which other trainers call it; the names are last parts of key paths, or whole paths."""

_OTHER_VALUES = {"gpu": "cuda", "grpo": "group_norm"}

_COMMON_KEYS = {"model": "path", "model.lora": "rank", "environment": "url", "traces": "path"}
"""Key that a user of a section most often means."""

_MOST = 3
"""Maximum number of suggested keys."""


def key_tip(name: str, known: Sequence[str]) -> str:
    """Return a tip for an unknown key path: the keys that it may stand for, else all keys of its section.

    Args:
        known: every key path of the config.
    """
    found = similar_keys(name, known)
    if found:
        quoted = [f"'{key}'" + (" (λ; train --lambda sets it)" if key == _LAMBDA else "") for key in found]
        return f"did you mean {' or '.join(quoted)}?"
    section = name.rpartition(".")[0]
    inside = [key for key in known if key.rpartition(".")[0] == section]
    if section and inside:
        return f"keys of {section}: {', '.join(key.rpartition('.')[2] for key in inside)}"
    return f"top-level keys: {', '.join(key for key in known if '.' not in key)}"


def similar_keys(name: str, known: Sequence[str]) -> list[str]:
    """Return the known key paths for an unknown one that is another name of a key, misplaced or misspelt."""
    section, _, last = name.rpartition(".")
    if name in _OTHER_NAMES:
        return [_OTHER_NAMES[name]]
    top_level = [key for key in known if "." not in key]
    if not section and (close := difflib.get_close_matches(name, top_level, n=1, cutoff=0.85)):
        return close
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    if last in by_last:
        return _nearest_section(by_last[last], section)
    if last in _OTHER_NAMES:
        return [_OTHER_NAMES[last]]
    if joined := [key for key in known if f"_{key.replace('.', '_')}".endswith(f"_{name.replace('.', '_')}")]:
        return _nearest_section(joined, section)
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
        return close
    beside = [key.rpartition(".")[2] for key in known if section and key.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(last, beside, n=1, cutoff=0.75):
        return [f"{section}.{close[0]}"]
    close = difflib.get_close_matches(
        last, [*by_last, *(other for other in _OTHER_NAMES if "." not in other)], n=1, cutoff=0.75
    )
    if not close:
        return []
    return [_OTHER_NAMES[close[0]]] if close[0] in _OTHER_NAMES else _nearest_section(by_last[close[0]], section)


def settable_key(name: str, known: Sequence[str]) -> str | None:
    """Return the one key that a name stands for, if there is one; for a section, the key that users most often mean."""
    found = [name] if name in known else similar_keys(name, known)
    if len(found) != 1:
        return None
    return f"{found[0]}.{_COMMON_KEYS[found[0]]}" if found[0] in _COMMON_KEYS else found[0]


def _nearest_section(keys: Sequence[str], section: str) -> list[str]:
    """Return the keys of the same top-level section if there are any, else all; the shortest paths first."""
    top = section.partition(".")[0]
    same = [key for key in keys if top and key.startswith(f"{top}.")]
    return sorted(same or keys, key=lambda key: key.count("."))[:_MOST]


def value_tip(name: str, details: Mapping[str, Any], known: Sequence[str]) -> str:
    """Return a tip for a value of the wrong type or out of range.

    Args:
        details: pydantic's description of the error.
    """
    got, kind = details["input"], details["type"]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'|\b(True|False)\b", details["ctx"]["expected"])
        return _choice_tip(got, [text or constant.lower() for text, constant in choices])
    if isinstance(got, str) and kind in ("float_type", "int_type"):
        if _is_number(got):
            return "write the number without quotes"
        several = name == "seed" and "," in got
        return "for several seeds: echo-cli sweep-lambda 0 1 --seeds 0 1" if several else "write a number"
    if isinstance(got, float) and kind == "int_type":
        return "write an integer, without a decimal point or exponent"
    if kind in ("model_type", "dataclass_type", "dict_type"):
        below = [key for key in known if key.startswith(f"{name}.")]
        key = f"{name}.{_COMMON_KEYS[name]}" if name in _COMMON_KEYS else (below or [f"{name}.KEY"])[0]
        return f"it is a section: set its keys, such as {key}"
    return "the shipped configs explain every key; --dry-run prints the resolved config"


def _choice_tip(got: Any, choices: Sequence[str]) -> str:
    other = _OTHER_VALUES.get(str(got))
    near = [other] if other in choices else difflib.get_close_matches(str(got), choices, n=1)
    return f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(choices)}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def word_tip(word: str, shipped: Sequence[str], known: Sequence[str]) -> str:
    """Return a tip for a word on the command line that is not `key.path=value`.

    Args:
        shipped: names of the shipped configs.
    """
    path = Path(word)
    if (path / "config.yaml").is_file():
        return f"to continue that run: --resume --output-dir {path.parent} --run-name {path.name}"
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return f"did you mean --config {word}?"
    if word in known:
        return f"write {word}=VALUE, without spaces around ="
    if word in ("resume", "overwrite", "help", "json"):
        return f"did you mean --{word}?"
    near = [path.stem] if path.stem in shipped else difflib.get_close_matches(word, shipped, n=1, cutoff=0.75)
    return f"did you mean --config {near[0]}?" if near else "write key.path=value, for example optim.lr=1e-3"


def config_tip(name_or_file: str, shipped: Sequence[str], environments: Sequence[str]) -> str:
    """Return a tip for a config that does not exist: a shipped config with a similar name, else all of them.

    Args:
        environments: names of the environments' presets, which are no configs.
    """
    path = Path(name_or_file)
    if (path / "config.yaml").is_file():
        return f"did you mean {path / 'config.yaml'}?"
    name = path.stem if path.suffix in (".yaml", ".yml") else name_or_file
    preset = name.removeprefix("environments/")
    if preset in environments and name not in shipped:
        return (
            f"write 'environment: {{preset: {preset}, url: URL, tasks: …}}' into your own config, docs/environments.md"
        )
    near = [name] if name in shipped else difflib.get_close_matches(name, shipped, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"shipped configs: {', '.join(shipped)}"
