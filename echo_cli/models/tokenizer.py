"""Text to token ids and back, for the built-in byte-level BPE and for the fast tokenizers of Hugging Face.

Text never turns into a special token, whatever it spells, and comes back as it went in: characters are not normalised,
and no space is put before a text, so that one encoded in pieces reads as the pieces do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from echo_cli.errors import EchoError

TOKENIZER_FILE = "tokenizer.json"
BOS, PAD = "<bos>", "<pad>"

# What a merge may not cross: a word with the space, dot, slash or underscore before it, one digit, a run of other
# marks, a newline.
_PIECES = r"[ ./_]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\n|[^\S\n]+"

# How sentencepiece spells a space.
_METASPACE = "\u2581"

# Steps of a backend that change characters, or put a space before a text and take it off again.
_REWRITING = {"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Strip"}


class Tokenizer:
    """A vocabulary with its special tokens; `decode(encode(text)) == text` for byte-level ones.

    Args:
        backend: as it is saved.
        bos_id: what a text starts with, where the model has such a token.
        start_id: what stands in front of a transcript without scaffold: BOS, or what ends a text.
        pad_id: any valid id.
        eos_ids: the tokens that end an answer of the model.
        files: the tokenizer's files by their names, for `save`.
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
        # A backend has a switch that makes text of special tokens, and of no other added ones: here all are special,
        # but for runs of spaces, which are text also where a tokenizer lists them.
        plain = [{**token, "special": not _is_space(token["content"])} for token in state["added_tokens"]]
        self._plain = Backend.from_str(json.dumps({**state, "added_tokens": plain}))
        self._plain.encode_special_tokens = True
        self._byte_level = any(step["type"] == "ByteLevel" for step in _steps(state["decoder"]))
        self._byte_tokens = bool(state["model"].get("byte_fallback"))
        self.vocab_size: int = max(backend.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, which is text and nothing else: no special or added token among them."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_scaffold(self, text: str) -> list[int]:
        """Token ids of `text`, in which the names of special and added tokens stand for the tokens."""
        ids: list[int] = self._scaffold.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of `token_ids`; bytes that are not UTF-8 become U+FFFD, special tokens their names."""
        text: str = self._scaffold.decode(token_ids, skip_special_tokens=False)
        return text

    def token_id(self, name: str) -> int | None:
        """The id of the special or added token of that name."""
        return next((token_id for token_id, content in self._added.items() if content == name), None)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """The names of the special and added tokens, those that are spaces left out."""
        return tuple(name for name in self._added.values() if not _is_space(name))

    @cached_property
    def newline_ids(self) -> tuple[int, ...]:
        """The tokens that end a line."""
        texts = self._scaffold.decode_batch([[i] for i in range(self.vocab_size)], skip_special_tokens=False)
        return tuple(i for i, text in enumerate(texts) if "\n" in text)

    def pieces(self, text: str, token_ids: Sequence[int]) -> list[str]:
        """`text`, which `token_ids` stand for, in a piece for each token.

        A character is its last byte's token's. A special token that is not spelled out in the text, BOS for one, has
        an empty piece.
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
        """Bytes of text that each token stands for; together those of the text, wherever characters are split."""
        return [self._byte_count(token_id) for token_id in token_ids]

    def _byte_count(self, token_id: int) -> int:
        if token_id in self._added:
            return len(self._added[token_id].replace(_METASPACE, " ").encode())
        token = self._scaffold.id_to_token(token_id) or ""
        if self._byte_level:  # its alphabet spells a token with one character a byte
            return len(token)
        if self._byte_tokens and len(token) == len("<0x0A>") and token.startswith("<0x"):
            return 1
        return len(token.replace(_METASPACE, " ").encode())

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`, as they were where it came with some."""
        if TOKENIZER_FILE not in self._files:
            (folder / TOKENIZER_FILE).write_text(self.to_json(), encoding="utf-8")
        for name, data in self._files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """The built-in model's kind of tokenizer, saved at `path`.

        Raises:
            EchoError: the file is missing or is not a tokenizer.
        """
        try:
            return _built_in(Backend.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise EchoError(f"no tokenizer at {path}", "the model folder needs its tokenizer.json") from None
        except Exception as error:  # the Rust library raises bare Exception
            raise EchoError(f"{path} is not a tokenizer: {error}", "restore the file from its source") from error

    @staticmethod
    def train(texts: list[str], vocab_size: int) -> Tokenizer:
        """A tokenizer of at most `vocab_size` entries, fitted on `texts`, with one id a digit and a newline."""
        backend = new_backend(_PIECES)
        fit_backend(backend, texts, vocab_size, special_tokens=[PAD, BOS])
        return _built_in(backend)


def new_backend(pieces: str) -> Backend:
    """Return an empty byte-level BPE, whose merges stay within the matches of the pattern `pieces`."""
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    backend.decoder = decoders.ByteLevel()
    return backend


def fit_backend(backend: Backend, texts: list[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> None:
    """Fit the merges of a backend on `texts`, to at most `vocab_size` entries, every byte among them."""
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
        raise EchoError(f"the tokenizer has no {token} token", "train it with Tokenizer.train, or take tiny-base's")
    return token_id


def _is_space(token: str) -> bool:
    return token.replace(_METASPACE, " ").isspace()


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, one by one."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    key = next(key for key in ("normalizers", "pretokenizers", "decoders") if key in part)
    return [step for inner in part[key] for step in _steps(inner)]


def _verbatim(state: dict[str, Any]) -> dict[str, Any]:
    """A backend's JSON, without what would change a text, add tokens around it, or cut it."""
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
