"""A folder of the built-in model: weights as safetensors, architecture and tokenizer as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from echo_cli.errors import EchoError, first_line
from echo_cli.models.tiny import CONFIG_FILE, TinyConfig, TinyModel
from echo_cli.models.tokenizer import TOKENIZER_FILE, Tokenizer

TINY_BASE = "tiny-base"
"""The name of the model that ships with the package."""


def model_folder(path: str) -> Path:
    """The folder of `model.path`."""
    return Path(__file__).parent / "tiny_base" if path == TINY_BASE else Path(path)


def load_model(folder: Path) -> tuple[TinyModel, Tokenizer]:
    """The model and tokenizer of a folder.

    Raises:
        EchoError: the folder is missing or a file in it is not what it should be.
    """
    if not folder.is_dir():
        raise EchoError(f"no model folder {folder}", "model.path is 'tiny-base' or a folder with model.safetensors")
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    try:
        config = TinyConfig(**json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        tip = "for a Hugging Face model set model.kind=hf; else restore the file"
        raise EchoError(f"{folder / CONFIG_FILE} is not a model config: {first_line(error)}", tip) from error
    if config.vocab_size != tokenizer.vocab_size:
        raise EchoError(
            f"{folder}: the model has {config.vocab_size} tokens and the tokenizer {tokenizer.vocab_size}",
            "take both from the same source",
        )
    model = TinyModel(config)
    model.load(folder)
    return model, tokenizer


def save_model(model: TinyModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model folder."""
    model.save(folder)
    tokenizer.save(folder)
