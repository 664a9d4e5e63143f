"""A small decoder-only transformer: RoPE, LayerNorm, QK-norm, ReLU, and a width-3 causal convolution.

Each choice is cheap on a CPU, forward and backward: LayerNorm without parameters is one fused operation (torch splits
RMSNorm into several), the rotation is one complex product, the convolution is one depthwise `conv1d`.

Shapes: B sequences, T tokens, H hidden, N heads, D head width, L layers, C cache length.
"""

from __future__ import annotations

import copy
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from echo_cli.config.model import BUILT_IN
from echo_cli.errors import EchoError, first_line
from echo_cli.models.tokenizer import TOKENIZER_FILE, Tokenizer
from echo_cli.models.weight_files import WEIGHTS, Shapes, check_shapes, check_text_files
from echo_cli.text import escape_unprintable

MODEL_FILE, CONFIG_FILE = WEIGHTS, "config.json"

# Queries and keys have unit mean square, so a scale of 1/sqrt(D) would bound attention logits at sqrt(D) = 5.7: the
# softmax would be too flat to select one token out of a hundred.
_ATTENTION_SCALE = 0.4

# Limits of a config.json, whose values are read before the weights.
_MOST_LAYERS, _MOST_POSITIONS = 1024, 2**18


@dataclass(frozen=True)
class TinyConfig:
    """Architecture of a `TinyModel`; RoPE covers `max_length` positions."""

    vocab_size: int
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    max_length: int = 2048

    def __post_init__(self) -> None:
        if not all(type(size) is int and size > 0 for size in vars(self).values()):
            raise ValueError("a size is not a positive number")
        if self.hidden % (2 * self.heads):
            raise ValueError("hidden is not an even multiple of heads")
        if self.layers > _MOST_LAYERS or self.max_length > _MOST_POSITIONS:
            raise ValueError(f"layers is above {_MOST_LAYERS}, or max_length above {_MOST_POSITIONS}")

    @property
    def shapes(self) -> Shapes:
        """Shapes of the weights by name."""
        H = self.hidden
        block = {"conv_H3": (H, 3), "qkv.weight": (3 * H, H), "out.weight": (H, H)}
        block |= {"up.weight": (4 * H, H), "down.weight": (H, 4 * H)}
        blocks = {f"blocks.{n}.{name}": shape for n in range(self.layers) for name, shape in block.items()}
        return {"embedding.weight": (self.vocab_size, H), **blocks}

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class KVCache:
    """A `language_model.Cache` of keys, values and convolution inputs of every layer; grows with the sequences."""

    def __init__(self, config: TinyConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        width = config.hidden // config.heads
        self.keys_LBNCD = torch.zeros(config.layers, batch, config.heads, 0, width, device=device, dtype=dtype)
        self.values_LBNCD = self.keys_LBNCD.clone()
        self.inputs_LBCH = torch.zeros(config.layers, batch, 2, config.hidden, device=device, dtype=dtype)

    def reserve(self, length: int) -> None:
        """Grow the cache to at least `length` positions."""
        missing = length - self.keys_LBNCD.shape[3]
        if missing > 0:
            missing = max(missing, self.keys_LBNCD.shape[3] // 2, 64)
            self.keys_LBNCD = F.pad(self.keys_LBNCD, (0, 0, 0, missing))
            self.values_LBNCD = F.pad(self.values_LBNCD, (0, 0, 0, missing))
            self.inputs_LBCH = F.pad(self.inputs_LBCH, (0, 0, 0, missing))

    def keep(self, rows: Tensor) -> None:
        self.keys_LBNCD = self.keys_LBNCD[:, rows]
        self.values_LBNCD = self.values_LBNCD[:, rows]
        self.inputs_LBCH = self.inputs_LBCH[:, rows]

    def add(self, count: int) -> None:
        self.keys_LBNCD = F.pad(self.keys_LBNCD, (0, 0, 0, 0, 0, 0, 0, count))
        self.values_LBNCD = F.pad(self.values_LBNCD, (0, 0, 0, 0, 0, 0, 0, count))
        self.inputs_LBCH = F.pad(self.inputs_LBCH, (0, 0, 0, 0, 0, count))


class TinyModel(nn.Module):
    """The built-in `LanguageModel`; its head is the embedding, `lm_head_VH`."""

    rotations_T1d: Tensor

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden)
        self.blocks: list[_Block] = nn.ModuleList(_Block(config) for _ in range(config.layers))  # type: ignore[assignment]
        width = config.hidden // config.heads
        frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = torch.arange(config.max_length, dtype=torch.float64)[:, None] * frequencies
        # [T, 1, D / 2], broadcast over heads.
        rotations = torch.polar(torch.ones_like(angles), angles)[:, None].to(torch.complex64)
        self.register_buffer("rotations_T1d", rotations, persistent=False)

    @property
    def lm_head_VH(self) -> Tensor:
        return self.embedding.weight

    @property
    def max_length(self) -> int:
        return self.config.max_length

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def __call__(self, token_ids_BT: Tensor) -> Tensor:
        hidden_BTH: Tensor = super().__call__(token_ids_BT)
        return hidden_BTH

    def head(self, hidden_NH: Tensor) -> Tensor:
        return F.linear(hidden_NH, self.lm_head_VH)

    def new_cache(self, batch: int) -> KVCache:
        return KVCache(self.config, batch, self.lm_head_VH.device, self.lm_head_VH.dtype)

    def holding_weights(self) -> AbstractContextManager[None]:
        return nullcontext()  # the weights are used as they are: nothing to cache

    def reference(self) -> TinyModel:
        return copy.deepcopy(self).requires_grad_(False)

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        # Written by Python because the library's errors do not say that the disk is full.
        (folder / MODEL_FILE).write_bytes(safetensors_bytes(tensors))
        (folder / CONFIG_FILE).write_text(json.dumps(self.config.to_json(), indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        path = folder / MODEL_FILE
        check_shapes(path, self.config.shapes)
        try:
            self.load_state_dict(load_file(path))
        except Exception as error:  # safetensors raises its own type from Rust, torch RuntimeError, the system OSError
            raise EchoError(
                f"cannot load weights from {escape_unprintable(path)}: {first_line(error)}",
                "restore the file from its source",
            ) from error

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw random weights from `generator`; residual outputs start at zero, so every block starts as identity."""
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith("conv_H3"):
                parameter.data.copy_(torch.tensor([0.0, 0.0, 1.0]).expand_as(parameter))
            else:
                std = 0.05 if parameter is self.embedding.weight else parameter.shape[-1] ** -0.5
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        T = token_ids_BT.shape[1]
        rotations_T1d = self.rotations_T1d[:T]
        hidden_BTH = _norm(self.embedding(token_ids_BT))
        for block in self.blocks:
            hidden_BTH = block(hidden_BTH, rotations_T1d)
        return _norm(hidden_BTH)

    def extend(self, token_ids_BT: Tensor, starts_B: Tensor, cache: KVCache, rows_B: Tensor | None = None) -> Tensor:
        B, T = token_ids_BT.shape
        rows_B1 = (torch.arange(B, device=starts_B.device) if rows_B is None else rows_B)[:, None]
        last = self.config.max_length - 1
        positions_BT = (starts_B[:, None] + torch.arange(T, device=starts_B.device)).clamp_(max=last)
        length = int(positions_BT.max()) + 1
        cache.reserve(length)
        rotations_BT1d = self.rotations_T1d[positions_BT]
        future_B1TC = torch.arange(length, device=starts_B.device) > positions_BT[:, None, :, None]
        hidden_BTH = _norm(self.embedding(token_ids_BT))
        for layer, block in enumerate(self.blocks):
            hidden_BTH = block.extend(
                hidden_BTH, rotations_BT1d, positions_BT, future_B1TC, cache, layer, rows_B1, whole=rows_B is None
            )
        return _norm(hidden_BTH)


class _Block(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        H = config.hidden
        self.heads = config.heads
        self.conv_H3 = nn.Parameter(torch.zeros(H, 3))
        self.qkv = nn.Linear(H, 3 * H, bias=False)
        self.out = nn.Linear(H, H, bias=False)
        self.up = nn.Linear(H, 4 * H, bias=False)
        self.down = nn.Linear(4 * H, H, bias=False)

    def forward(self, hidden_BTH: Tensor, rotations_T1d: Tensor) -> Tensor:
        inputs_BHT = F.pad(_norm(hidden_BTH).transpose(1, 2), (2, 0))
        mixed_BTH = F.conv1d(inputs_BHT, self.conv_H3[:, None], groups=len(self.conv_H3)).transpose(1, 2)
        q, k, v = self._project(mixed_BTH, rotations_T1d)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=_ATTENTION_SCALE)
        return self._finish(hidden_BTH, attended)

    def extend(
        self,
        hidden_BTH: Tensor,
        rotations_BT1d: Tensor,
        positions_BT: Tensor,
        future_B1TC: Tensor,
        cache: KVCache,
        layer: int,
        rows: Tensor,
        whole: bool,
    ) -> Tensor:
        inputs_BCH = cache.inputs_LBCH[layer]
        # The convolution inputs begin with two positions of zeros.
        inputs_BCH[rows, positions_BT + 2] = _norm(hidden_BTH)
        mixed_BTH = inputs_BCH[rows, positions_BT + 2] * self.conv_H3[:, 2]
        for lag in (1, 2):
            mixed_BTH.addcmul_(inputs_BCH[rows, positions_BT + 2 - lag], self.conv_H3[:, 2 - lag])
        q, k, v = self._project(mixed_BTH, rotations_BT1d)
        keys_BNCD, values_BNCD = cache.keys_LBNCD[layer], cache.values_LBNCD[layer]
        keys_BNCD[rows, :, positions_BT] = k.transpose(1, 2)
        values_BNCD[rows, :, positions_BT] = v.transpose(1, 2)
        length = future_B1TC.shape[-1]
        # For one query per sequence, torch's fused attention is slower than this on a CPU.
        chosen = slice(None) if whole else rows[:, 0]
        scores_BNTC = (q * _ATTENTION_SCALE) @ keys_BNCD[chosen, :, :length].transpose(2, 3)
        weights_BNTC = scores_BNTC.masked_fill_(future_B1TC, -torch.inf).softmax(dim=-1)
        return self._finish(hidden_BTH, weights_BNTC @ values_BNCD[chosen, :, :length])

    def _project(self, mixed_BTH: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = mixed_BTH.shape
        qk_BTMD, v_BTND = self.qkv(mixed_BTH).view(B, T, 3 * self.heads, -1).split([2 * self.heads, self.heads], dim=2)
        q_BTND, k_BTND = _rotate(_norm(qk_BTMD), rotations).chunk(2, dim=2)
        return q_BTND.transpose(1, 2), k_BTND.transpose(1, 2), v_BTND.transpose(1, 2)

    def _finish(self, hidden_BTH: Tensor, attended_BNTD: Tensor) -> Tensor:
        hidden_BTH = hidden_BTH + self.out(attended_BNTD.transpose(1, 2).flatten(2))
        update_BTH: Tensor = self.down(F.relu(self.up(_norm(hidden_BTH))))
        return hidden_BTH + update_BTH


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],))


def _rotate(x_BTMD: Tensor, rotations: Tensor) -> Tensor:
    """Rotate pairs of neighbouring features by the angles of their position."""
    pairs = torch.view_as_complex(x_BTMD.reshape(*x_BTMD.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2)


def load_model(folder: Path) -> tuple[TinyModel, Tokenizer]:
    """Load the model and tokenizer of a folder.

    Raises:
        EchoError: the folder is missing, or a file in it is missing or invalid.
    """
    if not folder.is_dir():
        tip = f"set model.path to {' or '.join(BUILT_IN)}, or to a folder with model.safetensors"
        raise EchoError(f"no model folder at {escape_unprintable(folder)}", tip)
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    path = folder / CONFIG_FILE
    try:
        check_text_files(folder, [CONFIG_FILE])
        config = TinyConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        tip = "for a Hugging Face model, set model.kind=hf; otherwise restore the file"
        said = escape_unprintable(first_line(error))
        raise EchoError(f"{escape_unprintable(path)} is not a model config: {said}", tip) from error
    if config.vocab_size != tokenizer.vocab_size:
        raise EchoError(
            f"{escape_unprintable(folder)}: the model has {config.vocab_size} tokens and the tokenizer "
            f"{tokenizer.vocab_size}",
            "use the model and the tokenizer from the same source",
        )
    check_shapes(folder / MODEL_FILE, config.shapes)  # before the model is allocated
    model = TinyModel(config)
    model.load(folder)
    return model, tokenizer


def save_model(model: TinyModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model and its tokenizer into `folder`."""
    model.save(folder)
    tokenizer.save(folder)
