"""Encoding of text to token ids and decoding, for the built-in byte-level BPE and Hugging Face fast tokenizers.

Text never becomes a special token, whatever it spells, and decodes to itself: characters are not normalised, and no
space is inserted before a text, so that separately encoded pieces decode to their concatenation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from echo_cli.errors import EchoError, first_line
from echo_cli.models.weight_files import check_text_files
from echo_cli.text import escape_unprintable

TOKENIZER_FILE = "tokenizer.json"
BOS, PAD = "<bos>", "<pad>"

# Merges do not cross the boundaries of these matches: a word with the space, dot, slash or underscore before it, a
# single digit, a run of other marks, a newline.
_PIECES = r"[ ./_]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\n|[^\S\n]+"

# SentencePiece's symbol for a space.
_METASPACE = "\u2581"

# Highest number of ids that is tabulated; the largest published vocabularies have a quarter of a million.
_MOST_IDS = 2**21

# Backend steps that change characters, or add a leading space and strip it again.
_REWRITING = {"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Strip"}


class Tokenizer:
    """A vocabulary with its special tokens; `decode(encode(text)) == text` for byte-level vocabularies.

    Args:
        backend: the backend in the form in which it is saved.
        bos_id: BOS token, if the model has one.
        start_id: first token of a transcript without scaffold: BOS, or the end-of-text token.
        pad_id: any valid id.
        eos_ids: tokens that end an answer of the model.
        files: contents of the tokenizer's files by name, for `save`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos_id: int | None,
        start_id: int,
        pad_id: int,
        eos_ids: Sequence[int] = (),
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.bos_id = bos_id
        self.start_id = start_id
        self.pad_id = pad_id
        self.eos_ids = tuple(eos_ids)
        self._backend = backend
        self._files = dict(files or {})
        state = _verbatim(json.loads(backend.to_str()))
        self._added: dict[int, str] = {token["id"]: token["content"] for token in state["added_tokens"]}
        self._scaffold = Backend.from_str(json.dumps(state))
        # `encode_special_tokens` encodes special tokens as text, but no other added tokens. Therefore mark every added
        # token as special, except runs of spaces, which are text even if a tokenizer lists them as added tokens.
        plain = [{**token, "special": not _is_space(token["content"])} for token in state["added_tokens"]]
        self._plain = Backend.from_str(json.dumps({**state, "added_tokens": plain}))
        self._plain.encode_special_tokens = True
        self._byte_level = any(step["type"] == "ByteLevel" for step in _steps(state["decoder"]))
        self._byte_tokens = bool(state["model"].get("byte_fallback"))
        self.vocab_size: int = max(backend.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Encode `text` as plain text, without any special or added token."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_scaffold(self, text: str) -> list[int]:
        """Encode `text`; names of special and added tokens become these tokens."""
        ids: list[int] = self._scaffold.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """Decode `token_ids`; invalid UTF-8 bytes become U+FFFD, special tokens become their names."""
        text: str = self._scaffold.decode(token_ids, skip_special_tokens=False)
        return text

    def token_id(self, name: str) -> int | None:
        """Return the id of the special or added token `name`, or None."""
        return next((token_id for token_id, content in self._added.items() if content == name), None)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Names of the special and added tokens, except tokens that consist of spaces."""
        return tuple(name for name in self._added.values() if not _is_space(name))

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of `added_tokens`: no text is encoded as one of them."""
        return frozenset(token_id for token_id, name in self._added.items() if not _is_space(name))

    @cached_property
    def newline_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that contain a newline."""
        texts = self._scaffold.decode_batch([[i] for i in range(self.vocab_size)], skip_special_tokens=False)
        return tuple(i for i, text in enumerate(texts) if "\n" in text)

    def pieces(self, text: str, token_ids: Sequence[int]) -> list[str]:
        """Split `text`, the decoded `token_ids`, into one piece per token.

        A character that several tokens share belongs to the token of its last byte. A special token that the text does
        not spell out, such as BOS, gets an empty piece.
        """
        data, begin, end, pieces = text.encode(), 0, 0, []
        for number, (token_id, size) in enumerate(zip(token_ids, self.byte_counts(token_ids), strict=True), start=1):
            spelled = token_id not in self._added or data.startswith(self._added[token_id].encode(), end)
            end = min(end + size, len(data)) if spelled else end
            cut = len(data) if number == len(token_ids) else end
            while begin < cut < len(data) and data[cut] & 0xC0 == 0x80:  # within a character
                cut -= 1
            pieces.append(data[begin:cut].decode())
            begin = cut
        return pieces

    def byte_counts(self, token_ids: Sequence[int]) -> list[int]:
        """Return each token's number of UTF-8 bytes; they sum to the text's size, even if tokens split characters."""
        return [self._byte_count(token_id) for token_id in token_ids]

    def _byte_count(self, token_id: int) -> int:
        if token_id in self._added:
            return len(self._added[token_id].replace(_METASPACE, " ").encode())
        token = self._scaffold.id_to_token(token_id) or ""
        if self._byte_level:  # the byte-level alphabet has one character per byte
            return len(token)
        if self._byte_tokens and len(token) == len("<0x0A>") and token.startswith("<0x"):
            return 1
        return len(token.replace(_METASPACE, " ").encode())

    def to_json(self) -> str:
        """Return the content of tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`; files that it was loaded from are copied unchanged."""
        if TOKENIZER_FILE not in self._files:
            (folder / TOKENIZER_FILE).write_text(self.to_json(), encoding="utf-8")
        for name, data in self._files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """Load a tokenizer of the built-in model's kind from `path`.

        Raises:
            EchoError: the file is missing or is not a tokenizer.
        """
        where = escape_unprintable(path)
        if not path.is_file():
            raise EchoError(f"no tokenizer at {where}", "copy tokenizer.json into the model folder")
        check_text_files(path.parent, [path.name])
        try:
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the Rust library raises bare Exception
            said = escape_unprintable(first_line(error))
            raise EchoError(f"{where} is not a tokenizer: {said}", "restore the file from its source") from error
        check_vocabulary(backend, where)
        try:
            return _built_in(backend)
        except EchoError as error:
            raise EchoError(f"{where}: {error.message}", error.tip) from None

    @staticmethod
    def train(texts: list[str], vocab_size: int) -> Tokenizer:
        """Fit a tokenizer of at most `vocab_size` entries on `texts`, with one token per digit and per newline."""
        backend = new_backend(_PIECES)
        fit_backend(backend, texts, vocab_size, special_tokens=[PAD, BOS])
        return _built_in(backend)


def check_vocabulary(backend: Backend, where: str) -> None:
    """Check that a tokenizer's ids are few enough to be listed; the ids of added tokens may be any number.

    Raises:
        EchoError: an id is above two million.
    """
    highest = max(backend.get_vocab().values(), default=-1)
    if highest >= _MOST_IDS:
        raise EchoError(
            f"the tokenizer of {where} has the token id {highest}, and at most {_MOST_IDS} tokens are listed",
            "restore the folder from its source",
        )


def new_backend(pieces: str) -> Backend:
    """Return an empty byte-level BPE whose merges do not cross matches of the pattern `pieces`."""
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    backend.decoder = decoders.ByteLevel()
    return backend


def fit_backend(backend: Backend, texts: list[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> None:
    """Fit the backend's merges on `texts`, for at most `vocab_size` entries including all 256 bytes."""
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)


def _built_in(backend: Backend) -> Tokenizer:
    bos_id = _special_id(backend, BOS)
    return Tokenizer(backend, bos_id=bos_id, start_id=bos_id, pad_id=_special_id(backend, PAD))


def _special_id(backend: Backend, token: str) -> int:
    token_id: int | None = backend.token_to_id(token)
    if token_id is None:
        raise EchoError(
            f"the tokenizer has no {token} token", "train it with Tokenizer.train, or use the tokenizer of tiny-base"
        )
    return token_id


def _is_space(token: str) -> bool:
    return token.replace(_METASPACE, " ").isspace()


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Flatten a normalizer, pre-tokenizer or decoder into its steps."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    key = next(key for key in ("normalizers", "pretokenizers", "decoders") if key in part)
    return [step for inner in part[key] for step in _steps(inner)]


def _verbatim(state: dict[str, Any]) -> dict[str, Any]:
    """Remove from a backend's JSON every step that changes a text, adds tokens around it, or truncates it."""
    changed = {**state, "post_processor": None, "truncation": None, "padding": None}
    for name, key in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        kept = []
        for step in _steps(state[name]):
            if step["type"] in _REWRITING:
                continue
            if step["type"] == "Metaspace":
                step = {**step, "prepend_scheme": "never"}
            if step["type"] == "ByteLevel":
                step = {**step, "add_prefix_space": False}
            kept.append(step)
        changed[name] = {"type": "Sequence", key: kept} if len(kept) > 1 else next(iter(kept), None)
    return changed
