"""Baselines for held-out measures: n-gram models, copying, and general-purpose compressors.

The n-gram models and compressors are fitted on the distinct (command, output) pairs that training executed; the copy
model's continuation probabilities are fitted on the validation pool. All baselines predict the same tokens as the
policy. A *novel* pair may have an output that is not novel: an n-gram model that has seen the output after one command
predicts it after any command. Without observations the n-gram models are uniform and the compressors have no
dictionary.
"""

from __future__ import annotations

import importlib.util
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from echo_cli.evaluation.measures import Bools, Ints, Measures, Predictions, Tokens, pairs_in
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.pools import Pair
from echo_cli.statistics import Floats, ratio

ORDER = 5
"""Order of the n-gram model, which conditions on up to `ORDER` - 1 tokens."""
MATCH_BUCKETS = (1, 2, 4, 8, 16)
"""Lowest match length of each bucket of the copy model, tokens."""

_ZSTD_LEVEL = 19


@dataclass(frozen=True)
class NGram:
    """An interpolated n-gram model with Witten-Bell smoothing over a uniform base.

    Witten and Bell 1991, method C: p(w | h) = (c(h w) + t(h) · p(w | h')) / (c(h) + t(h)), where c(h) is the number of
    tokens seen after the context h, t(h) the number of distinct tokens among them, and h' is h without its first token.
    The base case, below the empty context, is 1 / V. For a context that was never seen, p(w | h) = p(w | h').
    """

    order: int
    vocab_size: int
    counts: Mapping[tuple[int, ...], tuple[Ints, Ints]]
    """Per context, the ids of the tokens that followed it and their counts."""

    def distribution(self, context: Sequence[int]) -> Floats:
        """Return p(w | context) for all V tokens."""
        probability_V = np.full(self.vocab_size, 1 / self.vocab_size)
        for length in range(min(self.order - 1, len(context)) + 1):
            found = self.counts.get(tuple(context[len(context) - length :]))
            if found is None:
                break  # no longer context was seen either
            token_ids, times = found
            total = times.sum() + len(times)
            probability_V *= len(times) / total
            probability_V[token_ids] += times / total
        return probability_V


def fit_ngram(exchanges: Iterable[tuple[Sequence[int], Sequence[int]]], order: int, vocab_size: int) -> NGram:
    """Fit an n-gram model on exchanges.

    Args:
        exchanges: (command, output) token ids; the command ends with its newline and serves as context only.
    """
    counted: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for command_ids, output_ids in exchanges:
        sequence = [*command_ids, *output_ids]
        for place in range(len(command_ids), len(sequence)):
            for length in range(min(order - 1, place) + 1):
                counted[tuple(sequence[place - length : place])][sequence[place]] += 1
    return NGram(
        order,
        vocab_size,
        {
            context: (np.array(list(counter), dtype=np.int64), np.array(list(counter.values()), dtype=np.int64))
            for context, counter in counted.items()
        },
    )


def exchange_tokens(pairs: Iterable[Pair], tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """Tokenise each pair as in a transcript: the command with its newline, and the output, encoded separately."""
    return [(tokenizer.encode(command + "\n"), tokenizer.encode(output)) for command, output in pairs]


def ngram_predictions(model: NGram, tokens: Tokens) -> Predictions:
    """Predict each token from the preceding tokens of its exchange: command, newline and output."""

    def distribution(row: int) -> Floats:
        begin, index = tokens.begin[row], tokens.index[row]
        return model.distribution(tokens.sequences[tokens.trajectory[row]][max(begin, index - model.order + 1) : index])

    return predictions_from(distribution, tokens)


def predictions_from(distribution: Callable[[int], Floats], tokens: Tokens) -> Predictions:
    """Return the predictions of a model.

    Args:
        distribution: returns, for a row of `tokens`, the probabilities of all V tokens.
    """
    nats, confidence = np.zeros(len(tokens)), np.zeros(len(tokens))
    correct = np.zeros(len(tokens), dtype=np.bool_)
    for row, token_id in enumerate(tokens.token_id):
        probability_V = distribution(row)
        likeliest = int(probability_V.argmax())
        nats[row] = -math.log(probability_V[token_id])
        correct[row], confidence[row] = likeliest == token_id, probability_V[likeliest]
    return Predictions(nats, correct, confidence)


def fit_copying(tokens: Tokens) -> Floats:
    """Return, for each of `MATCH_BUCKETS`, the probability that the next token continues the longest match.

    The estimator adds half a success and half a failure (Krichevsky and Trofimov 1981).

    Args:
        tokens: tokens of a pool on which no figure is reported (validation); only env_output tokens are counted.
    """
    output = tokens.role == "env_output"
    bucket, hit = _match_bucket(tokens), tokens.match_token == tokens.token_id
    inside = [output & (bucket == number) for number in range(len(MATCH_BUCKETS))]
    return np.array([((mask & hit).sum() + 0.5) / (mask.sum() + 1) for mask in inside])


def copy_predictions(mass: Floats, unigram: NGram, tokens: Tokens) -> Predictions:
    """Predict by copying: the token that continues the longest match in the trajectory has its bucket's probability.

    The match may span any roles and have any length. The other tokens share the remaining probability in proportion to
    their unigram probabilities. Without a match, the unigram model predicts.

    Args:
        mass: probability per match bucket, from `fit_copying`.
    """
    unigram_V, bucket = unigram.distribution(()), _match_bucket(tokens)

    def distribution(row: int) -> Floats:
        if bucket[row] < 0:
            return unigram_V
        copied = tokens.match_token[row]
        probability_V: Floats = unigram_V * ((1 - mass[bucket[row]]) / (1 - unigram_V[copied]))
        probability_V[copied] = mass[bucket[row]]
        return probability_V

    return predictions_from(distribution, tokens)


def compressors(observed: bytes | None) -> dict[str, Callable[[bytes], int]]:
    """Return the compressors by name; each maps a text to its compressed size in bytes.

    The streams are raw, without headers and checksums: deflate at level 9 (the stream inside gzip, with a window of
    32 KiB) and, if `zstandard` is installed, zstd at level 19. The size of a compressed empty text (deflate: 2 bytes,
    zstd: 5 bytes) is subtracted: this framing would be a considerable share of an output of 60 bytes.

    Args:
        observed: training observations, used as a preset dictionary (raw content in zstd); each compressor is returned
            both without and with the dictionary. With None, only compressors without a dictionary are returned.
    """
    kinds = {"gzip": _deflate} | ({"zstd": _zstd} if has_zstd() else {})
    streams = {}
    for name, kind in kinds.items():
        streams[name] = kind(b"")
        if observed is not None:
            streams[f"{name} + observations"] = kind(observed)
    return {name: _without_framing(size) for name, size in streams.items()}


def has_zstd() -> bool:
    """Return whether the extra `zstd` is installed."""
    return importlib.util.find_spec("zstandard") is not None


def compress(size: Callable[[bytes], int], tokens: Tokens, chosen: Bools, tokenizer: Tokenizer) -> Measures | None:
    """Measure bits per byte over the text of the `chosen` tokens; return None if the text is empty.

    The outputs of each trajectory are compressed as one stream.
    """
    numbers = sorted(set(tokens.trajectory[chosen].tolist()))
    texts = []
    for number in numbers:
        inside = chosen & (tokens.trajectory == number)
        spans = dict.fromkeys(tokens.span[inside].tolist())
        outputs = (tokenizer.decode(tokens.token_id[inside & (tokens.span == span)].tolist()) for span in spans)
        texts.append("".join(outputs).encode())
    estimate = ratio([8 * size(text) for text in texts], [len(text) for text in texts])
    if estimate is None:
        return None
    return Measures(
        {"env_bits_per_byte": estimate}, int(chosen.sum()), sum(map(len, texts)), len(texts), pairs_in(tokens, chosen)
    )


def _without_framing(size: Callable[[bytes], int]) -> Callable[[bytes], int]:
    framing = size(b"")
    return lambda text: size(text) - framing


def _deflate(dictionary: bytes) -> Callable[[bytes], int]:
    def size(text: bytes) -> int:
        compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zdict=dictionary)
        return len(compressor.compress(text) + compressor.flush())

    return size


def _zstd(dictionary: bytes) -> Callable[[bytes], int]:
    import zstandard

    known = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_checksum=False,
        write_content_size=False,
        write_dict_id=False,
    )
    compressor = zstandard.ZstdCompressor(dict_data=known, compression_params=parameters)
    return lambda text: len(compressor.compress(text))


def _match_bucket(tokens: Tokens) -> Ints:
    """Return each token's index into `MATCH_BUCKETS`; -1 without a match."""
    return np.searchsorted(MATCH_BUCKETS, tokens.match_length, side="right") - 1
