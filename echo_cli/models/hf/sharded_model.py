"""A model whose weights, and with them gradients and optimizer state, are split over the ranks: PyTorch's FSDP2.

A forward or backward pass gathers the weights of one layer after another from all ranks, so all ranks make the same
number of passes in an update (`TorchPolicy` adds passes without a loss). Sampling and scoring take as many passes as a
rank has work; before them, `hold_whole` gathers all weights at once.

An adapter is not split: it is small, every rank has it whole, and its gradients are added as without FSDP.

Source: torch.distributed.fsdp.fully_shard; Zhao et al. 2023, arXiv 2304.11277.

Shapes: B sequences, T tokens, N positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from echo_cli.errors import EchoError
from echo_cli.models.distributed.ranks import Ranks
from echo_cli.models.distributed.shards import read_shards, write_shards
from echo_cli.models.distributed.split import split_like
from echo_cli.models.hf.kv_cache import RowCache
from echo_cli.models.hf.lora import save_adapter
from echo_cli.models.hf.model import HfModel
from echo_cli.models.hf.weights import save_whole
from echo_cli.models.language_model import LanguageModel
from echo_cli.models.weight_files import SHARDED_WEIGHTS


class ShardedModel:
    """A `LanguageModel` that is split over `ranks`, layer by layer.

    Without `hold_whole`, its passes are collectives, as are `hold_whole` and `save`.

    Args:
        inner: the model on the CPU, with equal weights on all ranks; it moves to `device` layer by layer.

    Raises:
        EchoError: torch is too old.
    """

    def __init__(self, inner: HfModel, device: torch.device, ranks: Ranks) -> None:
        if not hasattr(FSDPModule, "reset_iter_state"):
            raise EchoError("distributed.strategy fsdp needs torch 2.13 or newer", "update torch, or set strategy=ddp")
        mesh = init_device_mesh(device.type, (ranks.size,))
        trained = set(inner.parameters()) if not isinstance(inner.model, PeftModel) else set()
        kept = {parameter for parameter in inner.parameters() if parameter.requires_grad} - trained
        half = None if inner.dtype == torch.float32 else inner.dtype
        for layer in inner.layers:
            # The residual stream stays float32, as in one process: only the weights of a layer are rounded.
            policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
            fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=kept)
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        # The head runs after the forward pass of the root, which has its weights.
        fully_shard(inner, mesh=mesh, mp_policy=policy, ignored_params=kept, reshard_after_forward=False)
        self._parts = {name: module for name, module in inner.named_modules() if isinstance(module, FSDPModule)}
        for part in self._parts.values():
            part.set_gradient_divide_factor(1.0)  # gradients add up
            part.set_force_sum_reduction_for_comms(True)
        for parameter in kept:
            parameter.data = parameter.data.to(device)
        inner.keep_adapter_apart()
        self._inner = inner
        self._ranks = ranks
        self._is_whole = False
        self._names = _names(inner.model)
        with torch.no_grad():  # the root has to be the first module that runs
            inner(torch.zeros(1, 1, dtype=torch.int64, device=device))
        self._parts[""].reset_iter_state()

    @property
    def max_length(self) -> int:
        return self._inner.max_length

    @property
    def vocab_size(self) -> int:
        return self._inner.vocab_size

    def __call__(self, token_ids_BT: Tensor) -> Tensor:
        return self._inner(token_ids_BT)

    def head(self, hidden_NH: Tensor) -> Tensor:
        return self._inner.head(hidden_NH)

    def new_cache(self, batch: int) -> RowCache:
        return self._inner.new_cache(batch)

    def extend(self, token_ids_BT: Tensor, starts_B: Tensor, cache: Any, rows_B: Tensor | None = None) -> Tensor:
        return self._inner.extend(token_ids_BT, starts_B, cache, rows_B)

    def holding_weights(self) -> AbstractContextManager[Any]:
        return self._inner.holding_weights()

    def reference(self) -> LanguageModel:
        """Return the base without the adapter, which is split as well.

        Raises:
            EchoError: the model has no adapter: a frozen copy of it would have to be split on its own.
        """
        if not isinstance(self._inner.model, PeftModel):
            raise EchoError(
                "objective.kl_coeff is above 0, and a model that FSDP splits has no frozen copy",
                "set objective.kl_coeff=0, model.lora, or distributed.strategy=ddp",
            )
        return self._inner.reference()

    def hold_whole(self, whole: bool) -> None:
        """Gather all weights on every rank, or, with `whole` False, keep this rank's part of them alone."""
        if whole == self._is_whole:
            return
        self._is_whole = whole
        for name, part in self._parts.items():  # the root has no name
            part.set_reshard_after_forward(not whole and name != "", recurse=False)
            if whole:
                part.unshard()
        if not whole:
            # Forget the passes without gradients as well: from their order, which differs between ranks, the backward
            # pass would take the layers to gather in advance.
            self._parts[""].reset_iter_state()

    def pass_without_loss(self) -> None:
        """Take part in a forward and backward pass of the other ranks, with a gradient of zero."""
        hidden_11H = self(torch.zeros(1, 1, dtype=torch.int64, device=next(self.parameters()).device))
        (self.head(hidden_11H[0]).sum() * 0.0).backward()  # type: ignore[no-untyped-call]

    def save(self, folder: Path) -> None:
        """Write the weights into `folder`, each rank its part; the first one writes an adapter, which is not split."""
        self.hold_whole(False)
        model = self._inner.model
        if not isinstance(model, PeftModel):
            write_shards(self._weights(), folder / SHARDED_WEIGHTS, self._ranks)
        if self._ranks.is_first:
            save_adapter(model, folder) if isinstance(model, PeftModel) else save_whole(model, folder, {})

    def export(self, folder: Path) -> None:
        """Write the model into `folder` as one process does, in the dtype of the gathered weights; no collective.

        Only between `hold_whole(True)` and `hold_whole(False)`.
        """
        assert self._is_whole
        model = self._inner.model
        # Not the state of the module: reading it would split the weights.
        whole = {name: value.detach() for name, value in [*model.named_parameters(), *model.named_buffers()]}
        if isinstance(model, PeftModel):
            save_adapter(model, folder, whole)
        else:
            save_whole(model, folder, {name: whole[name] for name in self._names})

    def load(self, folder: Path) -> None:
        """Load the weights of a folder that `save`, or one process, wrote; no collective."""
        self.hold_whole(False)
        if isinstance(self._inner.model, PeftModel):
            self._inner.load(folder)
        elif (folder / SHARDED_WEIGHTS).is_dir():
            read_shards(self._weights(), folder / SHARDED_WEIGHTS)
        else:
            now = self._inner.model.state_dict()
            self._inner.load(folder, lambda name, value: split_like(value, now[name]) if name in now else value)

    def _weights(self) -> dict[str, Tensor]:
        """Return this rank's part of the weights by name."""
        state = self._inner.model.state_dict()
        return {name: state[name] for name in self._names}

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._inner.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._inner.named_parameters()

    def to(self, device: Any) -> ShardedModel:
        """Return the model, which is on its device already."""
        return self


def _names(model: nn.Module) -> list[str]:
    """Return the names of what a model's files hold; of two names of one weight, the first."""
    own = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return [name for name in model.state_dict() if name in own]
