"""A run opened for measurement: its policies, its tasks, and the frozen pools it is measured on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from echo_cli.config.effects import effects_of
from echo_cli.config.episodes.chosen import alone_in
from echo_cli.config.model import SamplerConfig
from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import evaluation_seed, rollout_tasks
from echo_cli.evaluation.pass_at_k import TaskOutcome, outcomes_by_part
from echo_cli.evaluation.pools.frozen import frozen_pools, kept_pool, part_of, replays_pools
from echo_cli.evaluation.records import HELDOUT, OOD, plays_line
from echo_cli.models.backend import Policy
from echo_cli.models.device import DeviceChoice
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.loading import close_policy, load_renderer, open_policy
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.limits import limits_of
from echo_cli.rollouts.rollout import without_fragments
from echo_cli.runs.directory import RunDirectory, open_run
from echo_cli.runs.origin import NO_CONSENT, Consent, config_text
from echo_cli.runs.parts import base_of, environment_in
from echo_cli.runs.pool_folder import read_pool
from echo_cli.runs.pools import Pair, Pool, pool_of
from echo_cli.runs.provenance import read_record
from echo_cli.terminal import put
from echo_cli.text import escape_unprintable
from echo_cli.traces.retokenize import retokenize, truncated
from echo_cli.traces.training_data import POOL, pool_splits, trace_notices


class LoadedRun:
    """A run directory with its config; the run's policies, tasks and pools are opened on first use.

    As a context manager, it closes the run's environment on exit.

    Args:
        pool_folders: folders of pools on which the run is measured in addition to its own pools.
        consent: rule by which the run's environment and endpoint may be used.
        environment: the only one of several environments that is opened and measured, which `config` is of.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: Config,
        pool_folders: Sequence[Path] = (),
        consent: Consent = NO_CONSENT,
        environment: str = "",
    ) -> None:
        self.directory, self.config, self._environment = directory, config, environment
        self.samples_as_trained = False
        """Whether policies sample at the endpoint that sampled during training, if any, instead of in this process."""
        self.announce: Callable[[str], object] = lambda _: None
        """Callback with a line before each part of the work that is slow for a large model."""
        self._pool_folders = pool_folders
        self._consent, self._has_consent = consent, False
        self._opened = ExitStack()

    def __enter__(self) -> LoadedRun:
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    @property
    def name(self) -> str:
        return self.directory.path.resolve().name

    @property
    def notes(self) -> list[str]:
        """Notes on the run's traces; see `run_notices`."""
        return run_notices(self.directory, self.config)

    def observed(self, until_step: int, pool: str = "") -> list[Pair]:
        """Return the pairs that training had executed by `until_step`, in order of first occurrence.

        Given a pool of one of several environments, only those of this environment.

        Raises:
            EchoError: the run has no record of executed pairs, or the record is damaged.
        """
        rows = self.directory.read_observations(until_step)
        own = environment_in(pool) or self._environment
        return list(
            dict.fromkeys((row["command"], row["output"]) for row in rows if not own or row.get("environment") == own)
        )

    def checkpoint(self, which: str | int) -> tuple[Path, int]:
        """Verify a checkpoint ("best", "latest" or a step) and return its folder and step.

        Raises:
            EchoError: the checkpoint does not exist or is damaged.
        """
        folder, meta = self.directory.load_checkpoint(which)
        return folder, int(meta["step"])

    def checkpoint_steps(self, wanted: Sequence[str | int]) -> list[int]:
        """Return the distinct steps of checkpoints, ascending.

        Args:
            wanted: "best", "latest", "all" or steps.

        Raises:
            EchoError: a checkpoint does not exist or is damaged.
        """
        steps: set[int] = set()
        for which in wanted:
            if which == "all":
                steps |= set(self.directory.checkpoints.steps())
            if which != "all" or not steps:
                steps.add(self.checkpoint("latest" if which == "all" else which)[1])
        return sorted(steps)

    @cached_property
    def renderer(self) -> Renderer:
        """Renderer of the run's model, loaded without the weights."""
        return load_renderer(self.config)

    def policy(self, checkpoint: Path | None = None, purpose: str = "") -> Policy:
        """Load the policy from a checkpoint folder, or the initial policy without one; `purpose` is announced with it.

        Raises:
            EchoError: the device, the model or the endpoint is not available, or the checkpoint has a different
                architecture.
        """
        # Nothing is trained here, and compiling would start a compiler.
        config = self.config.model_copy(update={"model": self.config.model.model_copy(update={"compile": False})})
        if config.sampler.kind == "openai" and self.samples_as_trained:
            self.obtain_consent()
        elif config.sampler.kind == "openai":
            own = SamplerConfig(refill=config.sampler.refill, prefill_tokens=config.sampler.prefill_tokens)
            config = config.model_copy(update={"sampler": own})
        if config.service is not None:
            self.obtain_consent()
        self.announce(f"loading {escape_unprintable(config.model.path)} {purpose}".rstrip())
        policy, _ = open_policy(config)
        self._opened.callback(close_policy, policy)
        if checkpoint is not None:
            policy.load(checkpoint)
        return policy

    def load(self, policy: Policy, step: int) -> None:
        """Load the checkpoint of `step` into `policy`.

        Raises:
            EchoError: the checkpoint is damaged or has a different architecture.
        """
        self.announce(f"loading the checkpoint of step {step}")
        policy.load(self.checkpoint(step)[0])

    @cached_property
    def initial(self) -> Policy:
        """Initial policy. No checkpoint may be loaded into it."""
        policy = self.policy(purpose="as the initial policy")
        check_context(self.config, policy)
        return policy

    def obtain_consent(self) -> None:
        """Announce, once, the effects of playing in the run's environment; raise if they need consent and lack it."""
        if not self._has_consent:
            self._consent.obtain(effects_of(self.config, sampler=self.samples_as_trained), self.directory.path)
            self._has_consent = True

    @cached_property
    def task_suite(self) -> TaskSuite:
        """Tasks and environments of the run, open until the end of the run's `with` block; errors as `open_worlds`."""
        self.obtain_consent()
        return self._opened.enter_context(open_worlds(self.config))

    def kept_pool(self, name: str, renderer: Renderer | None = None) -> Pool | None:
        """Return a frozen pool from the run's file, in the tokens of a given `renderer`; None if there is no file."""
        path = self.directory.pool_paths.get(name)
        return None if path is None else kept_pool(path, renderer, self._environment)

    def frozen_pools(self, policy: Policy) -> dict[str, Pool]:
        """Return the run's frozen pools by name; the environment is opened only if they have to be replayed.

        Args:
            policy: any policy of the run; its renderer and context length are used.
        """
        kept = self._environment or self.directory.pool_paths.keys() - {POOL}
        replays = not kept and replays_pools(self.config)
        worlds = self.task_suite if replays else None
        return frozen_pools(self.directory, self.config, worlds, policy, self._environment)

    def pool_in(self, folder: Path, policy: Policy) -> Pool:
        """Load the pool of a folder in the tokens of `policy`, a policy of the run.

        Raises:
            EchoError: as in `load_pool`.
        """
        return load_pool(folder, policy.renderer, policy.model.max_length, cut=self.config.model.kind == "hf")

    @cached_property
    def pools(self) -> dict[str, Pool]:
        """Pools on which the run is measured, by table column and in column order; the run's own pools come first."""
        own = [name for base in (HELDOUT, OOD, POOL) for name in self._frozen if base_of(name) == base]
        self._frozen_pool(HELDOUT)
        columns = {name: self._frozen[name] for name in own}
        folders = pool_columns(self._pool_folders, columns)
        return columns | {name: self.pool_in(folder, self.initial) for name, folder in folders.items()}

    @property
    def heldout(self) -> Pool:
        """Held-out pool; of several environments, all of theirs."""
        return self._frozen_pool(HELDOUT)

    @property
    def validation(self) -> Pool:
        """Pool on which the best step was chosen."""
        return self._frozen_pool("validation")

    def play(self, policy: Policy, rollouts: int, who: str) -> dict[str, list[TaskOutcome]]:
        """Play the held-out tasks and return their outcomes by pool; empty without rollouts.

        The sampling seed is the same for every run and checkpoint, so that first rollouts can be paired.

        Args:
            rollouts: Number of rollouts per task.
            who: name of the policy in the announcement.

        Raises:
            EchoError: the environment lost the session of a rollout in every attempt (exit code 1).
        """
        if not rollouts:
            return {}
        suites = {HELDOUT: self.task_suite}
        if any(base_of(name) == OOD for name in self._frozen):
            suites[OOD] = self.task_suite.out_of_distribution()
        played: dict[str, list[TaskOutcome]] = {}
        for name, suite in suites.items():
            if tasks := suite.tasks.heldout:
                self.announce(plays_line(who, len(tasks), name, rollouts))
                seed = evaluation_seed(self.config, name)
                whole = rollout_tasks(policy, suite, tasks, rollouts, self.config, seed)
                if not self.config.names:
                    whole = without_fragments(whole, rollouts * len(tasks), suite.hosting)
                suite.hosting.faults.tell_reasons(self.announce)
                played |= outcomes_by_part(name, suite, tasks, whole, self.config.evaluation.solved_at)
        return {name: outcomes for name, outcomes in played.items() if outcomes}

    @cached_property
    def _frozen(self) -> dict[str, Pool]:
        pools = self.frozen_pools(self.initial)
        return {name: pool for name, pool in pools.items() if base_of(name) != OOD or pool.trajectories}

    def _frozen_pool(self, name: str) -> Pool:
        """Return a pool, or the union of its parts in several environments."""
        if (pool := part_of(self._frozen, name)) is None:
            message = f"{escape_unprintable(self.directory.path)} lacks its {name} pool"
            raise EchoError(message, "repeat the training with --overwrite")
        return pool


def load_run(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    pool_folders: Sequence[Path] = (),
    consent: Consent = NO_CONSENT,
    environment: str | None = None,
) -> LoadedRun:
    """Return the run at `path` with its training config.

    Args:
        overrides: overrides of the config that the command line gives, such as the device of the run's policies.
        pool_folders, consent: as in `LoadedRun`.
        environment: name of the only one of several environments to open and measure; None for all.

    Raises:
        EchoError: there is no run at `path`, or it has no such environment.
    """
    directory, text = open_run(path), config_text(path)
    config = directory.read_config(overrides, text).granted(consent.grants)
    if environment is not None:
        config = alone_in(config, environment)
    return LoadedRun(directory, config, pool_folders, replace(consent, text=text), environment or "")


def load_pool(folder: Path, renderer: Renderer, max_tokens: int | None = None, *, cut: bool = False) -> Pool:
    """Load the pool in `folder`, retokenized for `renderer` (see `retokenize`).

    Args:
        max_tokens: the longest trajectory that the measured policy accepts, tokens; None for no limit.
        cut: truncate longer trajectories (`truncated`) instead of raising.

    Raises:
        EchoError: as in `read_pool`; a trajectory is longer than `max_tokens`; with `cut`, no output remains.
    """
    name, (_, played) = escape_unprintable(folder), read_pool(folder)
    trajectories = [retokenize(trajectory, renderer) for trajectory in played]
    pool = pool_of(trajectories)
    longest = max(map(len, pool.trajectories), default=0)
    if max_tokens is None or longest <= max_tokens:
        return pool
    if not cut:
        message = f"a trajectory in {name} has {longest} tokens, the model's context is {max_tokens}"
        raise EchoError(message, "build the pool with a lower rollout.max_episode_tokens")
    fitting = [truncated(trajectory, renderer.tokenizer, max_tokens) for trajectory in trajectories]
    left = pool_of(trajectory for trajectory in fitting if trajectory is not None)
    if not left.trajectories:
        message = f"{name} has no output within the model's context of {max_tokens} tokens"
        raise EchoError(message, "use a model with a longer context, or build the pool with shorter episodes")
    return replace(left, cut=sum(len(trajectory) > max_tokens for trajectory in trajectories))


def pool_columns(folders: Sequence[Path], taken: Collection[str] = ()) -> dict[str, Path]:
    """Return the folders of pools by column name, which is the folder's name.

    Raises:
        EchoError: two folders have the same name, or a name is `taken`.
    """
    columns: dict[str, Path] = {}
    for folder in folders:
        name = escape_unprintable(folder.resolve().name)
        if name in columns or name in taken:
            raise EchoError(f"two pools are named {name}", "rename one folder: pools are named after their folders")
        columns[name] = folder
    return columns


def build_policy(
    config: Config, ranks: Ranks = ALONE, *, quiet: bool = False, trains: bool = False
) -> tuple[Policy, DeviceChoice]:
    """Return the initial policy of a run and its device; with a KL penalty, the policy keeps its reference weights.

    Raises:
        EchoError: as in `open_policy` and `check_context`.
    """
    policy, choice = open_policy(config, ranks, trains=trains)
    if config.objective.kl_coeff > 0:
        policy.keep_reference()
    check_context(config, policy, quiet=quiet or not ranks.is_first)
    return policy, choice


def check_context(config: Config, policy: Policy, *, quiet: bool = False) -> None:
    """Check that episodes fit the model's context, whatever the tools of the environment, which `limits_for` knows.

    `limits_for` lowers the caps of episodes that may not fit; unless `quiet`, a warning on stderr gives the new caps.

    Raises:
        EchoError: not even one turn fits.
    """
    if config.environment.none:  # no episode is played
        return
    line = limits_of(config).lowered_line(policy.model.max_length, policy.renderer.overhead)
    if line is not None and not quiet:
        put(f"warning: {line}", err=True)


def run_notices(run: RunDirectory, config: Config) -> list[str]:
    """Return notices on a run's traces: their number, their overlap, and how many are truncated."""
    splits = pool_splits(alone=bool(config.environment.none))
    try:
        return [] if config.traces is None else trace_notices(read_record(run.path)["traces"], splits)
    except (KeyError, TypeError, ValueError) as error:
        raise EchoError(f"{escape_unprintable(run.path)} has no record of its traces", "train it again") from error
