"""A Hugging Face causal LM with the interface of `language_model`, trained whole or through a LoRA adapter.

Shapes: B sequences, T tokens, N positions or heads, H hidden, V vocabulary, C cache slots.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from echo_cli.config.model import ModelConfig
from echo_cli.errors import EchoError
from echo_cli.models.hf.kv_cache import PassingCache, RowCache, cache_argument
from echo_cli.models.hf.lora import MergedAdapter, load_adapter, save_adapter
from echo_cli.models.hf.weights import read_causal_lm, save_whole
from echo_cli.text import escape_unprintable


class HfModel(nn.Module):
    """A transformers decoder as a `LanguageModel`; trained weights are float32.

    Rows are right-padded and have no attention mask: causality hides padding from earlier tokens, and attention can use
    the fused causal kernel.

    Args:
        model: a causal LM without dropout, with or without a LoRA adapter.
        settings: config of the model; the keys for its source have no effect here.
        dtype: dtype of matrix products and of the KV cache; bfloat16 runs under autocast.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, settings: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.max_length = max_length_of(self.causal_lm)
        self._settings = settings
        self._cache_argument = cache_argument(self.causal_lm.base_model)
        self._hidden = torch.compile(self._run, dynamic=True) if settings.compile else self._run
        self._merged = MergedAdapter.of(model) if isinstance(model, PeftModel) else None
        if settings.gradient_checkpointing:
            _checkpoint_layers(self.causal_lm)
        self.eval()

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The causal LM, including the adapter if there is one."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def layers(self) -> list[nn.Module]:
        """Decoder layers, in order."""
        lists = [module for module in self.causal_lm.modules() if isinstance(module, nn.ModuleList)]
        return list(next(module for module in lists if len(module) == self._layers))

    @property
    def vocab_size(self) -> int:
        """V, the width of the head; the tokenizer may have fewer tokens."""
        return int(self.causal_lm.get_output_embeddings().weight.shape[0])

    def __call__(self, token_ids_BT: Tensor) -> Tensor:
        hidden_BTH: Tensor = super().__call__(token_ids_BT)
        return hidden_BTH

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        training = torch.is_grad_enabled()
        if training and self._merged is not None:
            self._merged.release()  # an update needs the memory, and changes the adapter
        self._set_mode(training)
        with self._computing():
            return self._hidden(token_ids_BT) if training else self._run(token_ids_BT)

    def head(self, hidden_NH: Tensor) -> Tensor:
        with self._computing():
            logits_NV: Tensor = self.causal_lm.get_output_embeddings()(hidden_NH)
        return logits_NV

    def new_cache(self, batch: int) -> RowCache:
        return RowCache(self._layers, batch, self.dtype)

    def extend(self, token_ids_BT: Tensor, starts_B: Tensor, cache: RowCache, rows_B: Tensor | None = None) -> Tensor:
        T, limit = token_ids_BT.shape[1], self.max_length
        ends_BT = starts_B[:, None] + torch.arange(T, device=starts_B.device)
        # Padding past the last position goes to an extra slot, which every mask hides.
        slots_BT, positions_BT = ends_BT.clamp(max=limit), ends_BT.clamp(max=limit - 1)
        latest, length = torch.stack([starts_B.max(), slots_BT.max() + 1]).tolist()
        cache.place(slots_BT, rows_B, length)
        self._set_mode(False)
        with self._computing():
            if latest == 0 and limit >= T:  # no earlier tokens: use the fused causal attention
                return self._run(token_ids_BT, cache, positions_BT)
            visible_B1TC = torch.arange(length, device=starts_B.device) <= positions_BT[:, None, :, None]
            with self._masked_attention():
                return self._run(token_ids_BT, cache, positions_BT, self._mask(visible_B1TC))

    def holding_weights(self) -> AbstractContextManager[Any]:
        """Return a context in which autocast casts each weight once, or a float32 model's adapter is merged."""
        return self._autocast() if self._merged is None else self._merged.in_place()

    def keep_adapter_apart(self) -> None:
        """Never merge the adapter, as for a base whose weights are split over several processes."""
        self._merged = None

    def reference(self) -> HfModel:
        """Return the model at the start of training, frozen.

        With a fresh adapter this is the base with the adapter off, which costs no memory; otherwise the trained weights
        are copied.
        """
        if self._settings.lora is not None:
            return _Base(self.model, self._plain_settings, self.dtype)
        shared = {id(parameter): parameter for parameter in self.model.parameters() if not parameter.requires_grad}
        frozen = copy.deepcopy(self.model, shared).requires_grad_(False)
        embeddings = {id(module.weight) for module in frozen.modules() if isinstance(module, nn.Embedding)}
        for module in frozen.modules():
            # Cast in advance what autocast would cast at each call, except a weight shared with an embedding.
            if isinstance(module, nn.Linear) and id(module.weight) not in embeddings:
                module.weight.data = module.weight.data.to(self.dtype)
        return HfModel(frozen, self._plain_settings, self.dtype)

    def save(self, folder: Path) -> None:
        """Write the whole model or only the adapter, in the format of `from_pretrained`."""
        if isinstance(self.model, PeftModel):
            save_adapter(self.model, folder)
        else:
            save_whole(self.model, folder)

    def load(self, folder: Path, place: Callable[[str, Tensor], Tensor] = lambda _, value: value) -> None:
        """Load the weights from a folder that `save` wrote.

        Args:
            place: turns the whole value of a weight into the part of it that the model has, given its name.
        """
        if isinstance(self.model, PeftModel):
            load_adapter(folder, self.model)
            return
        saved = read_causal_lm(folder, self._plain_settings, torch.float32).state_dict()
        try:
            self.model.load_state_dict({name: place(name, value) for name, value in saved.items()})
        except RuntimeError as error:
            raise EchoError(
                f"{escape_unprintable(folder)} has another architecture: {' '.join(str(error).split())[:200]}",
                "set model.path to the model that wrote the folder",
            ) from error

    def _run(
        self,
        token_ids_BT: Tensor,
        cache: RowCache | None = None,
        positions_BT: Tensor | None = None,
        mask_B1TC: Tensor | None = None,
    ) -> Tensor:
        output = self.causal_lm.base_model(
            input_ids=token_ids_BT,
            attention_mask=mask_B1TC,
            position_ids=positions_BT,
            use_cache=cache is not None,
            **{self._cache_argument: PassingCache(self._layers) if cache is None else cache},
        )
        hidden_BTH: Tensor = output.last_hidden_state
        return hidden_BTH

    def _mask(self, visible_B1TC: Tensor) -> Tensor:
        if self._attention != "eager":
            return visible_B1TC
        # The eager attention of transformers adds its mask to the scores.
        return torch.zeros_like(visible_B1TC, dtype=self.dtype).masked_fill(~visible_B1TC, torch.finfo(self.dtype).min)

    @contextmanager
    def _masked_attention(self) -> Iterator[None]:
        """Use torch's attention over a ragged cache with flash_attention_2, which accepts no custom mask."""
        config, before = self.causal_lm.base_model.config, self._attention
        if before in ("sdpa", "eager"):
            yield
            return
        config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = before

    def _set_mode(self, training: bool) -> None:
        """Set train mode, in which transformers cannot use a cache, only if activations are checkpointed."""
        wanted = training and self._settings.gradient_checkpointing
        if self.model.training != wanted:
            self.model.train(wanted)

    def _computing(self) -> AbstractContextManager[Any]:
        return self._autocast()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.causal_lm.get_output_embeddings().weight.device.type, dtype=self.dtype)

    @property
    def _attention(self) -> str:
        return str(self.causal_lm.base_model.config._attn_implementation)

    @property
    def _layers(self) -> int:
        return int(self.causal_lm.config.get_text_config().num_hidden_layers)

    @property
    def _plain_settings(self) -> ModelConfig:
        return self._settings.model_copy(update={"gradient_checkpointing": False, "compile": False})


class _Base(HfModel):
    """The frozen base weights under an adapter, shared with the trained model."""

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self.model.disable_adapter(), self._autocast():
            yield


def _checkpoint_layers(causal_lm: PreTrainedModel) -> None:
    """Recompute each layer in the backward pass instead of keeping its activations.

    Raises:
        EchoError: the architecture does not support checkpointing.
    """
    # Without dropout, no random state has to be replayed.
    kwargs = {"use_reentrant": False, "preserve_rng_state": False}
    enable = getattr(causal_lm, "activation_checkpointing_enable", None)  # the name since transformers 5.20
    try:
        causal_lm.gradient_checkpointing_enable(kwargs) if enable is None else enable(kwargs)
    except ValueError as error:
        name = type(causal_lm).__name__
        tip = "set model.gradient_checkpointing=false"
        raise EchoError(f"{name} has no layers to checkpoint", tip) from error
    # Only reentrant checkpoints need input gradients, which are computed even for embeddings that are not trained.
    causal_lm.disable_input_require_grads()


def max_length_of(causal_lm: PreTrainedModel) -> int:
    """Return the maximum sequence length, tokens: the architecture's positions, limited by windows and LongRoPE.

    Up to its window length, a windowed layer equals full attention. Up to the original positions of LongRoPE (arXiv
    2402.13753), a token has one rotation; beyond them, the longest sequence of a batch changes every token's rotation.

    Raises:
        EchoError: config.json has no max_position_embeddings.
    """
    config = causal_lm.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise EchoError("the model's config.json has no max_position_embeddings", "choose another model")
    kinds = getattr(config, "layer_types", None)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    windowed = kinds is None or any(kind != "full_attention" for kind in kinds)
    most = [window for window in windows if windowed and isinstance(window, int)]
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # one for the model, or one per kind of layer
        if isinstance(part, dict) and part.get("rope_type") == "longrope":
            most.append(int(part["original_max_position_embeddings"]))
    return min([positions, *most])
