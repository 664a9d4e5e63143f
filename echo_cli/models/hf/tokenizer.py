"""The tokenizer of a Hugging Face model folder, rejected if transformers would silently build a different one.

Needs the extra `hf`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from echo_cli.config.model import ModelConfig
from echo_cli.errors import EchoError, first_line
from echo_cli.files import read_json
from echo_cli.models.hf.loading import TOKENIZER_CONFIG_FILE
from echo_cli.models.hf.weights import CONFIG_FILE, TRUST_TIP, check_config_file, read_config
from echo_cli.models.tokenizer import Tokenizer, check_vocabulary
from echo_cli.models.weight_files import check_text_files
from echo_cli.text import escape_unprintable

TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"

# Patterns of all files from which a tokenizer may be loaded.
_PATTERNS = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("*.model", "*.tiktoken", "tekken.json", "chat_template.json*", "chat_template.jinja"),
    *("additional_chat_templates/*.jinja", "tokenization_*.py"),
)

# The end-of-text token of models without BOS.
_END_OF_TEXT = "<|endoftext|>"

_SAMPLES = (
    *("ls -la /srv\n", " a  b\n\n\tc \r\n", "12:40 WARN 8080 == x[0]; rm 'q'", "\x1b[31mé日本🚀\u200d"),
    *("e\u0301 ﬁ \u00a0", "$ ", "\n", " ", "don't"),
)


def load_hf_tokenizer(folder: Path, model: ModelConfig) -> tuple[Any, Tokenizer]:
    """Return a local folder's `transformers` tokenizer, with the config's chat template, and our `Tokenizer` around it.

    Raises:
        EchoError: a file (config.json included) is missing or damaged, there is no eos, or text is not preserved.
    """
    where = escape_unprintable(folder)
    restore = "copy the model's tokenizer files, at least tokenizer.json and tokenizer_config.json, into the folder"
    if not (folder / TOKENIZER_CONFIG_FILE).is_file():
        raise EchoError(f"{where} has no {TOKENIZER_CONFIG_FILE}", restore)
    check_text_files(folder, [*_PATTERNS, GENERATION_FILE])
    if (folder / CONFIG_FILE).is_file():  # transformers reads it first
        check_config_file(folder)
    try:
        theirs = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # the files may be anything: OSError, ValueError, KeyError, or Rust's bare Exception
        if (folder / CONFIG_FILE).is_file():  # report its damage as such
            read_config(folder, trust_remote_code=model.trust_remote_code)
        if "trust_remote_code" in str(error):
            raise EchoError(f"{where} contains Python code that the tokenizer needs", TRUST_TIP) from error
        raise EchoError(
            f"cannot load the tokenizer of {where}: {escape_unprintable(first_line(error))}", restore
        ) from error
    if not theirs.is_fast:
        raise EchoError(f"the tokenizer of {where} is not a fast tokenizer", "convert it to tokenizer.json")
    # Without a vocabulary, transformers silently builds a tokenizer of the added tokens and at most one other.
    if theirs.backend_tokenizer.get_vocab_size(with_added_tokens=False) < 2:
        raise EchoError(f"the tokenizer of {where} is empty: its vocabulary is missing", restore)
    check_vocabulary(theirs.backend_tokenizer, where)
    found = (path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file())
    files = {str(path.relative_to(folder)): path.read_bytes() for path in found}
    if model.chat_template is not None:
        theirs.chat_template, files = _with_template(Path(model.chat_template), files)
    tokenizer = _tokenizer(theirs, _eos_ids(theirs, folder), files)
    check_text(tokenizer, where)
    return theirs, tokenizer


def check_text(tokenizer: Tokenizer, where: str) -> None:
    """Check that sample texts survive encoding and decoding, with correct byte counts and without special tokens.

    Raises:
        EchoError: a text does not survive; the message shows it.
    """
    special = {tokenizer.token_id(name) for name in tokenizer.added_tokens}
    for text in (*_SAMPLES, *tokenizer.added_tokens):
        ids = tokenizer.encode(text)
        back = tokenizer.decode(ids)
        if special & set(ids) or back != text or sum(tokenizer.byte_counts(ids)) != len(text.encode()):
            what = "a special token" if special & set(ids) else f"'{escape_unprintable(back)}'"
            raise EchoError(
                f"the tokenizer of {where} does not preserve text: '{escape_unprintable(text)}' becomes {what}",
                "choose a model with a byte-level vocabulary or byte fallback",
            )


def _tokenizer(theirs: Any, eos_ids: tuple[int, ...], files: Mapping[str, bytes]) -> Tokenizer:
    bos_id: int | None = theirs.bos_token_id
    end_of_text = next((i for i, token in theirs.added_tokens_decoder.items() if token.content == _END_OF_TEXT), None)
    start_id = next(token_id for token_id in (bos_id, end_of_text, eos_ids[0]) if token_id is not None)
    pad_id = start_id if theirs.pad_token_id is None else theirs.pad_token_id
    return Tokenizer(
        theirs.backend_tokenizer, bos_id=bos_id, start_id=start_id, pad_id=pad_id, eos_ids=eos_ids, files=files
    )


def _eos_ids(theirs: Any, folder: Path) -> tuple[int, ...]:
    """Return the tokenizer's eos id, then the eos ids of generation_config.json."""
    path = folder / GENERATION_FILE
    named = read_json(path).get("eos_token_id") if path.is_file() else None
    others = named if isinstance(named, list) else [named]
    ids = tuple(dict.fromkeys(i for i in (theirs.eos_token_id, *others) if i is not None))
    if not ids:
        raise EchoError(
            f"the tokenizer of {escape_unprintable(folder)} has no eos token",
            f"set eos_token in {TOKENIZER_CONFIG_FILE}",
        )
    if any(not isinstance(i, int) or not 0 <= i < len(theirs) for i in ids):
        raise EchoError(
            f"{escape_unprintable(path)} has eos_token_id {escape_unprintable(str(named))}, but the tokenizer "
            f"has {len(theirs)} tokens",
            "use files from a single source",
        )
    return ids


def _with_template(path: Path, files: Mapping[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """Return the template in a Jinja file, and the tokenizer's files with their templates replaced by it."""
    try:
        data = path.read_bytes()
        template = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise EchoError(
            f"cannot read model.chat_template {escape_unprintable(path)}: {reason}",
            "set model.chat_template to a Jinja file",
        ) from error
    settings = json.loads(files[TOKENIZER_CONFIG_FILE])
    settings.pop("chat_template", None)
    kept = {name: content for name, content in files.items() if "chat_template" not in name}
    config = json.dumps(settings, indent=2, ensure_ascii=False).encode()
    return template, {**kept, TOKENIZER_CONFIG_FILE: config, TEMPLATE_FILE: data}
