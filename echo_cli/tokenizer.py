"""Text to token ids and back: a byte-level BPE in which text never turns into a special token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Bpe

from echo_cli.error import EchoError

TOKENIZER_FILE = "tokenizer.json"
BOS, PAD = "<bos>", "<pad>"

# What a merge may not cross: a word with the space, dot, slash or underscore before it, one digit, a run of other
# marks, a newline.
_PIECES = r"[ ./_]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\n|[^\S\n]+"


class Tokenizer:
    """A byte-level BPE: `decode(encode(text)) == text` for every text, with one id a digit and a newline of its own.

    `newline_ids` are the tokens that end a line; they stop an action.
    """

    def __init__(self, bpe: Bpe) -> None:
        self._bpe = bpe
        # Text that spells "<bos>" must stay text.
        self._bpe.encode_special_tokens = True
        self.vocab_size = bpe.get_vocab_size()
        self.bos_id = _special_id(bpe, BOS)
        self.pad_id = _special_id(bpe, PAD)
        self.start_id = self.bos_id
        self.eos_ids: tuple[int, ...] = ()
        self.newline_ids = tuple(i for i in range(self.vocab_size) if "\n" in self.decode([i]))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of `token_ids`; bytes that are not UTF-8 become U+FFFD, special tokens their names."""
        text: str = self._bpe.decode(token_ids, skip_special_tokens=False)
        return text

    def byte_counts(self, token_ids: Sequence[int]) -> list[int]:
        """Bytes of text that each token stands for; together those of the text, wherever characters are split."""
        # The byte-level alphabet spells a token with one character a byte.
        return [len(self._bpe.id_to_token(token_id) or "") for token_id in token_ids]

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        text: str = self._bpe.to_str()
        return text

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`."""
        (folder / TOKENIZER_FILE).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """The tokenizer saved at `path`.

        Raises:
            EchoError: the file is missing or is not a tokenizer.
        """
        try:
            return Tokenizer(Bpe.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise EchoError(f"no tokenizer at {path}", "the model folder needs its tokenizer.json") from None
        except Exception as error:  # the Rust library raises bare Exception
            raise EchoError(f"{path} is not a tokenizer: {error}", "restore the file from its source") from error

    @staticmethod
    def train(texts: list[str], vocab_size: int) -> Tokenizer:
        """A tokenizer of at most `vocab_size` entries, fitted on `texts`."""
        bpe = Bpe(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return Tokenizer(bpe)


def _special_id(bpe: Bpe, token: str) -> int:
    token_id: int | None = bpe.token_to_id(token)
    if token_id is None:
        raise EchoError(f"the tokenizer has no {token} token", "train it with Tokenizer.train, or take tiny-base's")
    return token_id
