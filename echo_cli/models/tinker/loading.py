"""Opening of a config's policy at a Tinker service."""

from __future__ import annotations

import torch

from echo_cli.config.backend import SERVICE_ALPHA
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.models.architecture import architecture_of
from echo_cli.models.device import DeviceChoice
from echo_cli.models.renderer import Renderer
from echo_cli.models.tinker.adapter import Adapter
from echo_cli.models.tinker.policy import ServiceModel, ServicePolicy
from echo_cli.models.tinker.probe import Abilities, measure
from echo_cli.models.tinker.service import Service


def open_service_policy(config: Config, renderer: Renderer, *, trains: bool) -> tuple[ServicePolicy, DeviceChoice]:
    """Create a fresh adapter at the config's service, and return its policy with a line about the service.

    Args:
        trains: whether the policy is trained, for which the service's abilities are measured first.

    Raises:
        EchoError: as in `Service` and `measure`; the service lacks the base model or the loss; the length of its
            context is unknown.
    """
    backend = config.service
    assert backend is not None
    service = Service(backend)
    models, rank = service.models(), backend.rank(config.model)
    base_model = _base_model(models, backend.base_model, config.model.path, service.url)
    model = ServiceModel(_context(config, models[base_model]), renderer.tokenizer.vocab_size)
    abilities = measure(backend, base_model, rank) if trains else None
    if abilities is not None:
        _check_loss(config, abilities, service.url)
    adapter = Adapter.new(service, base_model, rank, config.seed)
    policy = ServicePolicy(adapter, base_model, rank, renderer, model, config, abilities)
    reason = f"the Tinker service at {service.url}: {base_model}, LoRA of rank {rank}; SDK {service.sdk_version}"
    reason += "" if abilities is None else f"; {abilities.line}"
    return policy, DeviceChoice(torch.device("cpu"), reason)


def service_notices(config: Config, policy: ServicePolicy) -> list[str]:
    """Return the lines about settings of the config that the service does not apply."""
    lines, lora, abilities = [], config.model.lora, policy.abilities
    if abilities is not None and not abilities.clips:
        lines.append(
            f"warning: the service does not clip gradients: optim.grad_clip={config.optim.grad_clip:g} has no effect"
        )
    if lora is not None and lora.alpha != SERVICE_ALPHA:
        lines.append(
            f"warning: a Tinker service has alpha {SERVICE_ALPHA:g}: model.lora.alpha={lora.alpha:g} has no effect"
        )
    return lines


def _base_model(models: dict[str, int | None], wanted: str | None, path: str, url: str) -> str:
    """Return the service's name of the base model."""
    if wanted is None:
        wanted = path if path in models or len(models) != 1 else next(iter(models))
    if wanted not in models:
        there = ", ".join(sorted(models)) or "none"
        raise EchoError(f"the Tinker service at {url} has no model {wanted}", f"set backend.base_model; it has {there}")
    return wanted


def _context(config: Config, of_service: int | None) -> int:
    """Return the length of the context, tokens: the least of the model's and the service's."""
    shape = architecture_of(config.model)
    known = [length for length in (of_service, None if shape is None else shape.max_length) if length]
    if not known:
        raise EchoError(
            f"the context length of {config.model.path} is unknown: the service does not tell it",
            "set model.path to a folder that has the model's config.json",
        )
    return min(known)


def _check_loss(config: Config, abilities: Abilities, url: str) -> None:
    """Check that the service has the loss of the run's surrogate."""
    surrogate = config.objective.surrogate
    needed = "ppo" if surrogate == "clipped" else "importance_sampling"
    if needed not in abilities.losses:
        other = "reinforce" if surrogate == "clipped" else "clipped"
        raise EchoError(
            f"the Tinker service at {url} has no loss {needed}, which objective.surrogate: {surrogate} needs",
            f"set objective.surrogate={other}",
        )
