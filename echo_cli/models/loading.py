"""Loading of a config's policy: renderer, weights, device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.models.architecture import model_folder
from echo_cli.models.backend import Policy
from echo_cli.models.device import DeviceChoice, choose_device, naming_memory
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.distributed.strategy import choose_strategy, usable_by_rank
from echo_cli.models.language_model import LanguageModel
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import PlainRenderer, Renderer
from echo_cli.models.tiny import load_model
from echo_cli.models.tokenizer import TOKENIZER_FILE, Tokenizer

if TYPE_CHECKING:
    from echo_cli.models.hf.model import HfModel


def load_renderer(config: Config) -> Renderer:
    """Load the renderer of the config's model, without its weights.

    Raises:
        EchoError: a tokenizer file is missing or invalid.
    """
    if config.model.kind == "hf":
        from echo_cli.models.hf.loading import hf_folder

        with hf_folder(config.model, config.seed, weights=False) as folder:
            return _hf_renderer(folder, config)
    return PlainRenderer(Tokenizer.load(model_folder(config.model.path) / TOKENIZER_FILE))


@naming_memory("loading")
def load_policy(
    config: Config,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    *,
    split: bool = False,
) -> TorchPolicy:
    """Load the policy as at the start of a run: with the model's weights, or random weights for `init: scratch`.

    Args:
        dtype: dtype of a Hugging Face model's matrix products; the built-in model computes in float32.
        split: whether to split a Hugging Face model over the ranks, which all call this function.

    Raises:
        EchoError: the model is missing, or one of its files is missing or invalid.
    """
    if config.model.kind == "hf":
        from echo_cli.models.hf.loading import hf_folder, load_hf_model

        def load() -> tuple[Renderer, HfModel]:
            with hf_folder(config.model, config.seed) as folder:
                renderer = _hf_renderer(folder, config)
                size, place = renderer.tokenizer.vocab_size, torch.device("cpu") if split else device
                return renderer, load_hf_model(folder, config.model, place, dtype, config.seed, size)

        renderer, whole = ranks.each(load)
        model: LanguageModel = whole
        if split:
            from echo_cli.models.hf.sharded_model import ShardedModel

            model = ShardedModel(whole, device, ranks)
        return TorchPolicy(model, renderer, config.optim, device, config.sampler, ranks)
    tiny, tokenizer = load_model(model_folder(config.model.path))
    if config.model.init == "scratch":
        tiny.init_weights(torch.Generator().manual_seed(config.seed))
    return TorchPolicy(tiny, PlainRenderer(tokenizer), config.optim, device, ranks=ranks)


def close_policy(policy: Policy) -> None:
    """Remove a policy from its Tinker service's memory, if it is at one."""
    if not isinstance(policy, TorchPolicy):
        from echo_cli.models.tinker.policy import ServicePolicy

        if isinstance(policy, ServicePolicy):
            policy.close()


def check_model(config: Config) -> None:
    """Check what `load_policy` checks, without reading a Hugging Face model's weights and without the hub.

    A hub model that this machine has not fetched is not checked.

    Raises:
        EchoError: as in `load_policy`.
    """
    if config.model.kind == "tiny":
        load_model(model_folder(config.model.path))
        return
    from echo_cli.models.hf.loading import NotFetched, check_hf_model, hf_folder

    try:
        dtype = choose_device(config.device, config.model.dtype).dtype
    except EchoError:  # the run is planned for a CUDA device elsewhere
        dtype = torch.float32 if config.model.dtype == "float32" else torch.bfloat16
    model = config.model.model_copy(update={"fetch": "never"})
    try:
        with hf_folder(model, config.seed, weights=False) as folder:
            renderer = _hf_renderer(folder, config)
            if config.service is None:  # a service has its own weights
                check_hf_model(folder, model, dtype, config.seed, renderer.tokenizer.vocab_size)
    except NotFetched:
        return


def _hf_renderer(folder: Path, config: Config) -> Renderer:
    from echo_cli.models.hf.renderer import load_hf_renderer

    return load_hf_renderer(folder, config.model, config.conversation)


def open_policy(config: Config, ranks: Ranks = ALONE, *, trains: bool = False) -> tuple[Policy, DeviceChoice]:
    """Set the config's number of CPU threads and load its policy on its device, or create it at its Tinker service.

    Args:
        trains: whether the policy is trained, for which a service's abilities are measured first.

    Raises:
        EchoError: the device is not available or lacks the dtype, or the model cannot be loaded; as in
            `open_service_policy`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.service is not None:
        from echo_cli.models.tinker.loading import open_service_policy

        if ranks.size > 1:
            tip = "start it without torchrun: the service divides the work"
            raise EchoError(f"backend.kind is tinker and {ranks.size} ranks were started", tip)
        return open_service_policy(config, load_renderer(config), trains=trains)
    choice = choose_device(config.device, config.model.dtype if config.model.kind == "hf" else "float32")
    if ranks.size == 1:
        return load_policy(config, choice.device, choice.dtype), choice
    usable = [size for size in ranks.gather(usable_by_rank(choice.device)) if size is not None]
    strategy = choose_strategy(config, choice, ranks.size, min(usable, default=None))
    policy = load_policy(config, choice.device, choice.dtype, ranks, split=strategy.name == "fsdp")
    return policy, replace(choice, reason=f"{choice.reason}; {strategy.name}: {strategy.reason}")
