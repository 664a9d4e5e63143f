"""Models named on the command line: their kind, their label, and the config that loads them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echo_cli.config.loader import find_config, load_config, parse_override
from echo_cli.config.model import BUILT_IN, RANDOM_QWEN3, ConversationConfig, ModelConfig, SamplerConfig, is_hub_id
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.files import read_json
from echo_cli.runs.checkpoints import Checkpoints
from echo_cli.text import escape_unprintable

_ANY_KIND = ("device", "threads", "optim.token_budget")
_HF_MODEL = ("revision", "trust_remote_code", "fetch", "dtype", "attention", "compile", "chat_template")
_NAMES = f"{', '.join(BUILT_IN)}, a folder with config.json and weights, or a hub id such as Qwen/Qwen3-0.6B"


@dataclass(frozen=True)
class NamedModel:
    """A model to measure."""

    label: str
    path: str
    """Value of `model.path`."""
    kind: Literal["tiny", "hf"]

    def config(self, base: Config) -> Config:
        """Return `base` with this pretrained model and no trainable adapters."""
        if self.kind == "tiny":
            model, conversation = ModelConfig(path=self.path), ConversationConfig()
        else:
            changes = {"kind": "hf", "path": self.path, "init": "pretrained", "lora": None}
            model, conversation = base.model.model_copy(update=changes), base.conversation
        changed = {"model": model, "conversation": conversation, "sampler": SamplerConfig()}
        return base.model_copy(update=changed)


def contenders(paths: Sequence[str], taken: Collection[str]) -> list[NamedModel]:
    """Return the models of `paths`, each with a unique label that is not `taken`.

    Raises:
        EchoError: a path is not a model or is given twice.
    """
    kinds = [kind_of(path) for path in paths]
    places = [_parts(path) for path in paths]
    for number, (path, place) in enumerate(zip(paths, places, strict=True)):
        if place in places[:number]:
            raise EchoError(f"--model {escape_unprintable(path)} is given twice", "give each model once")
    labels = [_label(place, [other for other in places if other != place], taken) for place in places]
    return [NamedModel(label, path, kind) for label, path, kind in zip(labels, paths, kinds, strict=True)]


def kind_of(path: str) -> Literal["tiny", "hf"]:
    """Return the kind of the model at `path`, built-in or Hugging Face, without a request to the hub.

    Raises:
        EchoError: `path` is not a model of either kind.
    """
    if path in (*BUILT_IN, RANDOM_QWEN3):
        return "tiny" if path in BUILT_IN else "hf"
    folder = Path(path)
    if not folder.is_dir():
        if is_hub_id(path):
            return "hf"
        raise EchoError(
            f"no model {escape_unprintable(path)}: {'not a folder' if folder.exists() else 'it does not exist'}",
            f"name {_NAMES}",
        )
    if (folder / "adapter_config.json").is_file():
        return "hf"
    if (folder / "config.json").is_file():
        return "hf" if "model_type" in read_json(folder / "config.json") else "tiny"
    checkpoints = Checkpoints(folder / "checkpoints")
    if steps := checkpoints.steps():
        newest = checkpoints.path / f"step_{steps[-1]:06d}"
        tip = f"name a checkpoint (--model {escape_unprintable(newest)}), or measure the run without --model"
        raise EchoError(f"{escape_unprintable(path)} is a run, not a model", tip)
    raise EchoError(f"{escape_unprintable(path)} is not a model: it has no config.json", f"name {_NAMES}")


def loading_config(name: str | None, overrides: Sequence[str], chosen: Sequence[NamedModel]) -> Config:
    """Return the config by which the `chosen` models are loaded and their conversations rendered.

    Args:
        name: a shipped config or a YAML file; None for `toy`.

    Raises:
        EchoError: as in `load_config`, or an override has no effect on the measurement of these models.
    """
    hf = [contender for contender in chosen if contender.kind == "hf"]
    for word in overrides:
        keys = parse_override(word).keys
        key = ".".join(keys)
        of_hf = keys[0] == "conversation" or (len(keys) == 2 and keys[0] == "model" and keys[1] in _HF_MODEL)
        if not of_hf and key not in _ANY_KIND:
            known = ", ".join([*(f"model.{each}" for each in _HF_MODEL), "conversation.*", *_ANY_KIND])
            raise EchoError(f"{escape_unprintable(key)} has no effect with --model", f"keys with an effect: {known}")
        if of_hf and not hf:
            raise EchoError(f"{escape_unprintable(key)} has no effect: no --model is a Hugging Face model", "omit it")
    # A config with a built-in model rejects the keys of Hugging Face models.
    kind = ["model.kind=hf", f"model.path={json.dumps(hf[0].path)}"] if hf else []
    return load_config(find_config("toy" if name is None else name), [*overrides, *kind])


def _parts(path: str) -> tuple[str, ...]:
    return Path(os.path.abspath(path)).parts if Path(path).is_dir() and path not in BUILT_IN else tuple(path.split("/"))


def _label(place: Sequence[str], others: Sequence[Sequence[str]], taken: Collection[str]) -> str:
    """Return the shortest trailing part of a path that is unique and not `taken`."""
    for length in range(1, len(place) + 1):
        label = escape_unprintable("/".join(place[-length:]))
        if label not in taken and all(tuple(other[-length:]) != tuple(place[-length:]) for other in others):
            return label
    return f"{escape_unprintable('/'.join(place))} (model)"
