"""Effects of acting on a config: servers, imports, contacts, written folders and sent variables."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, fields

from echo_cli.config.environment import EnvironmentConfig, ProviderConfig
from echo_cli.config.episodes.reward import RewardConfig
from echo_cli.config.episodes.tasks import is_on_hub
from echo_cli.config.mcp import McpConfig
from echo_cli.config.model import ModelConfig, SamplerConfig, is_hub_id
from echo_cli.config.schema import Config
from echo_cli.config.section import VARIABLE
from echo_cli.config.terminal import TerminalConfig
from echo_cli.text import escape_unprintable


@dataclass(frozen=True)
class Effects:
    """Effects, outside this process's own code and files, of a command that acts on a config."""

    starts: tuple[str, ...] = ()
    """Servers and graders, as command lines, images or projects."""
    imports: tuple[str, ...] = ()
    """Classes that run in this process, `pkg.module:Class`, and functions of graders."""
    contacts: tuple[str, ...] = ()
    """URLs and services."""
    sends: tuple[str, ...] = ()
    """Names of the environment variables whose values are passed on."""
    writes: tuple[str, ...] = ()
    """Folders outside the run directory."""
    may_fetch: tuple[str, ...] = ()
    """Models and datasets of a hub that are fetched unless this machine has them."""

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: Effects) -> Effects:
        both = ((*getattr(self, field.name), *getattr(other, field.name)) for field in fields(self))
        return Effects(*(tuple(dict.fromkeys(entries)) for entries in both))

    def __str__(self) -> str:
        """Return the effects as one printable line, such as `starts python -m server; sends MY_TOKEN`."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return escape_unprintable(
            "; ".join(f"{verb.replace('_', ' ')} {', '.join(objects)}" for verb, objects in parts if objects)
        )


def effects_of(config: Config, *, sampler: bool = True, trackers: bool = False) -> Effects:
    """Return the effects of playing the environment of `config`; none for the toy terminal in this process.

    Args:
        sampler: whether the policy's actions are sampled as in training.
        trackers: whether the run is tracked.
    """
    found = sum(map(_environment, config.sections.values()), Effects()) + _model(config.model)
    if sampler:
        found += _sampler(config.sampler)
    found += service_effects(config)
    if trackers and "wandb" in (config.track or ()):
        found += Effects(contacts=("wandb",))
    return found


def service_effects(config: Config) -> Effects:
    """Return the effects of the policy's backend: none, unless a Tinker service holds the policy."""
    if (service := config.service) is None or service.url is None:
        return Effects()
    return Effects(contacts=(service.url,), sends=() if service.api_key_env is None else (service.api_key_env,))


def _environment(environment: EnvironmentConfig) -> Effects:
    found = Effects()
    place = "" if environment.grants.import_from is None else f" (also from {environment.grants.import_from})"
    if environment.object is not None:
        found += Effects(imports=(f"{environment.object}{_arguments(environment.object_options)}{place}",))
    if environment.terminal is not None:
        found += _terminal(environment.terminal)
    if environment.provider is not None:
        found += _provider(environment.provider, place)
    if environment.client is not None:
        found += Effects(imports=(f"{environment.client}{place}",))
    if environment.url is not None:
        found += Effects(contacts=(environment.url,))
    tasks = environment.tasks
    if tasks is not None and tasks.dataset is not None and is_on_hub(tasks.dataset) and environment.grants.fetch:
        found += Effects(may_fetch=(_of_hub(tasks.dataset, tasks.revision),))
    if environment.reward.has_grader:
        found += _grader(environment.reward, place)
    if environment.mcp is not None:
        found += _mcp(environment.mcp)
    return found + Effects(sends=_variables(environment.headers))


_ISOLATION = {
    "bwrap": "under bubblewrap",
    "docker": "in containers of Docker",
    "process": "with the rights of this user, which is no security boundary",
}


def _terminal(terminal: TerminalConfig) -> Effects:
    contacts = () if terminal.git is None else (terminal.git.url,)
    network = " and the network" if terminal.network else ""
    shells = f"shells for the tasks of {terminal.place} {_ISOLATION[terminal.runtime]}{network}"
    return Effects((shells,), contacts=contacts)


def _provider(provider: ProviderConfig, place: str) -> Effects:
    kind, imports = provider.kind, tuple[str, ...]()
    if kind == "process":
        server = shlex.join(provider.command)
    elif kind == "docker":
        server = f"docker image {provider.image}"
    elif kind == "uv":
        server = f"uv project {provider.project_path}, app {provider.app}"
    else:
        imports = (f"{kind}{place}",)
        server = f"a server of {kind}{f', image {provider.image}' if provider.image else ''}"
    values = {**provider.env, "options": json.dumps(provider.options)}
    variables = f" with {', '.join(provider.env)} set" if provider.env else ""
    return Effects((f"{server}{_arguments(provider.options)}{variables}",), imports, sends=_variables(values))


def _grader(reward: RewardConfig, place: str) -> Effects:
    variables = f" with {', '.join(reward.env)} set" if reward.env else ""
    return Effects(
        starts=tuple(f"{shlex.join(command)}{variables}" for command in reward.commands),
        imports=tuple(f"{function}{place}{variables}" for function in reward.functions),
        sends=_variables(reward.env),
    )


def _mcp(mcp: McpConfig) -> Effects:
    if mcp.url is not None:
        return Effects(contacts=(mcp.url,), sends=_variables(mcp.headers))
    variables = f" with {', '.join(mcp.env)} set" if mcp.env else ""
    return Effects((f"{shlex.join(mcp.command)}{variables}",), sends=_variables(mcp.env))


def _model(model: ModelConfig) -> Effects:
    if model.kind != "hf" or model.fetch == "never" or not is_hub_id(model.path):
        return Effects()
    return Effects(may_fetch=(_of_hub(model.path, model.revision),))


def _of_hub(name: str, revision: str | None) -> str:
    return f"{name}{f' at {revision}' if revision else ''} from the hub"


def _sampler(sampler: SamplerConfig) -> Effects:
    if sampler.url is None:
        return Effects()
    folder = () if sampler.weights is None else (sampler.weights,)
    return Effects((), (), (sampler.url,), _variables(sampler.headers), folder)


def _variables(templates: dict[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for template in templates.values() for name in VARIABLE.findall(template)))


def _arguments(options: dict[str, object]) -> str:
    return f" with {json.dumps(options, ensure_ascii=False, default=str)}" if options else ""
