"""Schema of a run's config: every key with its type, default and bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, model_validator

from echo_cli.config.backend import BackendConfig, check_service
from echo_cli.config.environment import SOURCE_KEYS, EnvironmentConfig
from echo_cli.config.episodes.placebo import check_placebo
from echo_cli.config.episodes.rollout import RolloutConfig
from echo_cli.config.episodes.several import NamedEnvironment, check_several, in_environment
from echo_cli.config.episodes.traces import TracesConfig
from echo_cli.config.model import ConversationConfig, DistributedConfig, ModelConfig, SamplerConfig
from echo_cli.config.objective import ObjectiveSettings, check_selection_data
from echo_cli.config.section import (
    Fraction,
    FreeOnResume,
    Grants,
    NonNegative,
    NonNegativeFloat,
    PathText,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    is_free,
)
from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.errors import EchoError
from echo_cli.text import suggest


class OptimConfig(Section):
    """AdamW. `token_budget` limits a micro-batch, tokens including padding; it does not affect results."""

    lr: PositiveFloat = 5e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat = 1.0
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegative = 0
    token_budget: FreeOnResume[Positive] = 8192


class EvaluationConfig(Section):
    """Evaluation during a run.

    The pools are scored every `every` steps, before the first step and after the last. Tasks are played at the
    evaluated steps that are multiples of `pass_every`. `*_rollouts` is the number of rollouts per task for pass@1 and
    the mean reward; 0 omits them.
    """

    every: Positive = 10
    pass_every: Positive = 30
    validation_rollouts: NonNegative = 2
    heldout_rollouts: NonNegative = 2
    solved_at: float = 1.0
    """Lowest reward of a rollout that has solved its task."""
    kept_trajectories: NonNegative = 4
    select_by: Literal["env_ce", "pass_at_1", "mean_reward"] = "env_ce"

    @property
    def group_size(self) -> int:
        """Number of rollouts in a complete group of an evaluation."""
        return max(self.validation_rollouts, self.heldout_rollouts)


class CheckpointConfig(Section):
    """Checkpoints, saved every `every` steps and at the best and the last step.

    The newest `keep` checkpoints and the best checkpoint are kept.
    """

    every: Positive = 20
    keep: Positive = 3


class CollapseConfig(Section):
    """Collapse detection, and the action on an alarm; see training/collapse.py.

    Most signals are averaged over a window of `window` steps, or of more steps if needed to cover `min_tasks` tasks.
    Such a signal raises its only alarm when its mean is beyond its bound (`min_entropy` to `max_role_confusion`) and
    worse than in the run's best window by the factor `change` (0: the bound alone decides).
    """

    action: Literal["warn", "stop", "lower_lambda", "off"] = "warn"
    window: Positive = 5
    min_tasks: NonNegative = 40
    change: NonNegativeFloat = 2.0
    lower_factor: Fraction = 0.5
    min_entropy: NonNegativeFloat = 0.02
    min_action_length: NonNegativeFloat = 3.0
    max_action_fill: Fraction = 0.95
    min_valid_action_fraction: Fraction = 0.5
    max_capped_fraction: Fraction = 0.95
    min_commands_per_task: NonNegativeFloat = 0.5
    min_observations_per_task: NonNegativeFloat = 0.25
    max_compression: PositiveFloat = 6.0
    max_role_confusion: Fraction = 0.15
    min_reward_kept: Fraction = 0.25
    min_peak_reward: NonNegativeFloat = 0.1
    max_ood_rise: PositiveFloat = 1.6


TrackerName = Literal["tensorboard", "trackio", "wandb"]


def _tracker_names(value: Any) -> Any:
    """Return a name or a list of names as a tuple without duplicates, or None if empty."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list):
        return names
    for name in names:
        if name not in get_args(TrackerName):
            raise EchoError(f"unknown tracker '{name}'", suggest(str(name), get_args(TrackerName), "trackers"))
    return tuple(dict.fromkeys(names)) or None


class Config(Section):
    """All settings of a run."""

    steps: FreeOnResume[Positive] = 60
    seed: Seed = 0
    device: FreeOnResume[Literal["auto", "cpu", "cuda"]] = "auto"
    threads: FreeOnResume[NonNegative] = 0
    output_dir: FreeOnResume[PathText] = "outputs"
    run_name: FreeOnResume[PathText | None] = None
    track: FreeOnResume[Annotated[tuple[TrackerName, ...] | None, BeforeValidator(_tracker_names)]] = None
    preset: Literal["paper", "released", "prime", "openenv-example"] | None = None
    environment: EnvironmentConfig = EnvironmentConfig(toy_terminal=ToyTerminalConfig())
    environments: tuple[NamedEnvironment, ...] | None = None
    """Several environments, in the place of `environment`."""
    model: ModelConfig = ModelConfig()
    conversation: ConversationConfig = ConversationConfig()
    sampler: SamplerConfig = SamplerConfig()
    rollout: RolloutConfig = RolloutConfig()
    traces: TracesConfig | None = None
    objective: ObjectiveSettings = ObjectiveSettings()
    optim: OptimConfig = OptimConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: FreeOnResume[CheckpointConfig] = CheckpointConfig()
    probe_every: NonNegative = 0
    collapse: FreeOnResume[CollapseConfig] = CollapseConfig()
    distributed: FreeOnResume[DistributedConfig | None] = None
    backend: BackendConfig | None = None

    def explorers_at(self, coeff: float) -> int:
        """Return the number of explorers of a step at λ = `coeff`.

        Explorers contribute to the env term only: at λ = 0 they are useless, unless the step has no other data.
        """
        alone = self.rollout.tasks_per_step == 0 and self.traces is None
        return self.rollout.explorers if coeff > 0 or alone else 0

    @property
    def imitation_coeff(self) -> float:
        """Weight of the cross-entropy of the traces' action tokens; 0 without traces."""
        return 0.0 if self.traces is None else self.traces.imitation_coeff

    @property
    def of_each(self) -> dict[str, Config]:
        """The config of a run in each environment alone, by name; of a run in one environment itself, as "".

        Where an environment has no lines for explorers, its config has no explorers.
        """
        if self.environments is None:
            return {"": self}
        found = {}
        for entry in self.environments:
            explorers = self.rollout.explorers if entry.can_explore else 0
            rollout = self.rollout.model_copy(update={"explorers": explorers})
            alone = {"environment": entry.section, "environments": None, "rollout": rollout}
            found[entry.name] = self.model_copy(update=alone)
        return found

    @property
    def sections(self) -> dict[str, EnvironmentConfig]:
        """The section of each environment by name; of a run in one environment, as ""."""
        return {name: config.environment for name, config in self.of_each.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of several environments; empty for a run in one."""
        return tuple(entry.name for entry in self.environments or ())

    @model_validator(mode="after")
    def _plays_several(self) -> Config:
        if self.environments is None:
            return self
        if self.environment != type(self).model_fields["environment"].default:
            tip = "move it into the list with a name, or set environments=null; environments.NAME.key=… sets a key"
            raise EchoError("environment and environments are both set", tip)
        check_several(self.environments)
        if self.rollout.explorers and not any(entry.can_explore and entry.weight for entry in self.environments):
            tip = "list actions in an environment's explorer, or set rollout.explorers=0"
            raise EchoError(f"rollout.explorers is {self.rollout.explorers} and no environment has explorer lines", tip)
        for name, config in self.of_each.items():
            with in_environment(name):
                type(self)(**{key: getattr(config, key) for key in type(self).model_fields})
        return self

    @model_validator(mode="after")
    def _plays_nothing_without_an_environment(self) -> Config:
        if not self.environment.none:
            return self
        if self.traces is None:
            raise EchoError("environment.none is true and traces is null: nothing to train on", "set traces.path")
        for key in ("tasks_per_step", "explorers"):
            if count := getattr(self.rollout, key):
                tip = "without an environment: rollout.tasks_per_step=0 rollout.explorers=0 objective.use_rl=false"
                raise EchoError(f"environment.none is true and rollout.{key} is {count}: no rollouts are possible", tip)
        if self.evaluation.select_by != "env_ce":
            tip = "set evaluation.select_by=env_ce; without an environment no task is played"
            raise EchoError(f"environment.none is true and evaluation.select_by is {self.evaluation.select_by}", tip)
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> Config:
        if self.rollout.tasks_per_step == 0 and self.rollout.explorers == 0 and self.traces is None:
            raise EchoError("no rollouts: rollout.tasks_per_step and rollout.explorers are both 0", "set one of them")
        if self.objective.use_rl and self.rollout.tasks_per_step == 0:
            raise EchoError(
                "objective.use_rl is true and rollout.tasks_per_step is 0", "set tasks_per_step, or use_rl: false"
            )
        if not self.objective.use_rl and self.objective.base_coeff == 0 and self.imitation_coeff == 0:
            tip = "set one of them" if self.traces is None else "set one of them, or traces.imitation_coeff"
            raise EchoError("objective.use_rl is false and λ is 0: the loss is always 0", tip)
        return self

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Config:
        key = self.environment.without_effect()
        if key is not None:
            if self.environment.none:
                raise EchoError(f"environment.{key} has no effect with none", "omit it: there is no environment")
            owners = [f"environment.{source}" for source in SOURCE_KEYS.get(key, ())]
            tip = f"it belongs to {' or '.join(owners)}" if owners else "set the keys of toy worlds under toy_terminal"
            if key == "preset":
                tip = "set the source of that environment as well, such as environment.url=…, and environment.tasks"
            raise EchoError(f"environment.{key} has no effect with toy_terminal", tip)
        return self

    @model_validator(mode="after")
    def _of_the_model_kind(self) -> Config:
        if self.model.kind == "tiny":
            for name, section in (("conversation", self.conversation), ("sampler", self.sampler)):
                if section != type(section)():
                    raise EchoError(f"{name} has no effect with model.kind: tiny", "it applies only to kind hf")
        if self.sampler.sync == "vllm-lora" and self.model.lora is None:
            raise EchoError("sampler.sync is vllm-lora and model.lora is null", "set model.lora, or sync: sglang")
        if self.sampler.sync == "sglang" and self.model.lora is not None:
            raise EchoError(
                "sampler.sync is sglang, which loads full weights, and model.lora is set", "set sync: vllm-lora"
            )
        return self

    @model_validator(mode="after")
    def _has_explorers(self) -> Config:
        environment = self.environment
        if self.rollout.explorers and not environment.can_explore:
            raise EchoError(
                f"rollout.explorers is {self.rollout.explorers} and environment.explorer is empty",
                "list actions in environment.explorer, or set rollout.explorers=0",
            )
        return self

    @model_validator(mode="after")
    def _has_data_to_select_by(self) -> Config:
        sampled = self.rollout.tasks_per_step > 0
        check_selection_data(self.objective, sampled=sampled, traced=self.traces is not None)
        return self

    @model_validator(mode="after")
    def _has_placebo(self) -> Config:
        check_placebo(self.objective.env_targets, self.rollout, self.environment, self.traces)
        return self

    @model_validator(mode="after")
    def _suits_the_backend(self) -> Config:
        if self.service is not None:
            run = (self.model, self.sampler, self.objective, self.rollout)
            check_service(self.service, *run, distributed=self.distributed is not None, probe_every=self.probe_every)
        return self

    @property
    def service(self) -> BackendConfig | None:
        """Section of the Tinker service that holds the policy; None if this process holds it."""
        return self.backend if self.backend is not None and self.backend.kind == "tinker" else None

    def granted(self, grants: Grants) -> Config:
        """Return the config with permissions of this command line, which `to_yaml` and `model_dump` omit."""
        several = None if self.environments is None else tuple(of.granted(grants) for of in self.environments)
        backend = None if self.backend is None else self.backend.granted(grants)
        sections = {"environment": self.environment.granted(grants), "sampler": self.sampler.granted(grants)}
        return self.model_copy(update={**sections, "environments": several, "backend": backend})

    def to_yaml(self) -> str:
        """Return YAML that loads to an equal config."""
        values = json.loads(self.model_dump_json())
        if values["environments"] is not None:
            del values["environment"]
            values["environments"] = [
                {"name": of["name"], "weight": of["weight"], **of} for of in values["environments"]
            ]
        return yaml.safe_dump(values, sort_keys=False)


def flat_config(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config's values by dotted key path; those of several environments by name."""
    flat: dict[str, Any] = {}
    if not prefix and values.get("environments"):
        values = {**values, "environments": {entry["name"]: entry for entry in values["environments"]}}
    for key, value in values.items():
        flat |= flat_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def key_paths() -> list[str]:
    """Return every key path of a config, depth first; an entry of a list of sections is written as 0."""
    return [key for key, _ in _keys(Config)]


def free_keys() -> frozenset[str]:
    """Return the key paths marked `FreeOnResume`, and all key paths below them."""
    return frozenset(key for key, free in _keys(Config) if free)


def _keys(section: Any, prefix: str = "", below_free: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the key paths of `section` and whether each is free on resume."""
    if is_dataclass(section):  # the objective's settings, which have no free keys
        yield from ((prefix + field.name, below_free) for field in fields(section))
        return
    for name, field in section.model_fields.items():
        free = below_free or is_free(field)
        yield prefix + name, free
        for part, is_listed in _sections_in(field.annotation):
            yield from _keys(part, f"{prefix}{name}.{'0.' if is_listed else ''}", free)


def _sections_in(annotation: Any, is_listed: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield the sections in a field's type, which may be optional or a list, and whether each is in a list."""
    inner = get_args(annotation)
    if not inner and isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation, is_listed
    for part in inner:
        yield from _sections_in(part, is_listed or get_origin(annotation) is tuple)
