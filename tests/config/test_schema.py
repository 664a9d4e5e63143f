"""The config keys that may change when a run is resumed: exactly these; and the keys of placebos."""

from __future__ import annotations

import pytest

from echo_cli.config.loader import load_config
from echo_cli.config.schema import free_keys, key_paths
from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.errors import EchoError
from toy_terminal_env.machine import SEEDS

RUN = "steps device threads output_dir run_name track checkpoint checkpoint.every checkpoint.keep traces.path"
MEMORY = "optim.token_budget model.gradient_checkpointing sampler.prefill_tokens"
ENVIRONMENT = (
    "object url provider client headers sessions batch_wait_s attempts connect_timeout_s step_timeout_s retry_s"
)
PROVIDER = "kind image command project_path app port env options start_timeout_s limits"
MCP = "command url headers env folder start_timeout_s limits"
LIMITS = "memory_mb processes file_mb cpus"
ENDPOINT = "url model headers weights concurrency timeout_s"
COLLAPSE = """
    action window min_tasks change lower_factor min_entropy min_action_length max_action_fill min_valid_action_fraction
    max_capped_fraction min_commands_per_task min_observations_per_task max_compression max_role_confusion
    min_reward_kept min_peak_reward max_ood_rise
"""


def _below(section: str, keys: str) -> set[str]:
    return {f"{section}.{key}" for key in keys.split()}


def test_these_keys_and_no_others_may_change_on_resume() -> None:
    # A new field is not free by default; to mark it, or to add it to a free section, list it here as well.
    expected = {*RUN.split(), *MEMORY.split(), "rollout.keep", "collapse", *_below("collapse", COLLAPSE)}
    expected |= _below("model", "trust_remote_code fetch")
    expected |= _below("environment", f"{ENVIRONMENT} max_message_mb") | _below("environment.provider", PROVIDER)
    expected |= _below("environment.mcp", MCP) | _below("environment.mcp.limits", "memory_mb file_mb")
    expected |= _below("environment.reward", "on_error timeout_s workers env")
    expected |= _below("environment.terminal", "runtime")
    expected |= {"distributed", *_below("distributed", "strategy")}
    expected |= _below("backend", "url reduction api_key_env timeout_s")
    expected |= _below("sampler", ENDPOINT) | _below("environment.provider.limits", LIMITS)
    expected |= {key.replace(".", "s.0.", 1) for key in expected if key.startswith("environment.")}
    assert free_keys() == expected
    assert free_keys() < set(key_paths())


OTHER, SHUFFLED = "objective.env_targets=other_world", "objective.env_targets=shuffled"
NO_LAMBDA = "objective.world_model_coeff=0"
ALONE = ("rollout.tasks_per_step=1", "rollout.group_size=1", "rollout.explorers=0")


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (["objective.env_targets=shuffle"], "'objective.env_targets' is \"shuffle\"", "did you mean 'shuffled'?"),
        (
            ["objective.env_targets=false"],
            "'objective.env_targets' is false",
            "one of: true, other_world, shuffled, random",
        ),
        (["objective.env_targets='true'"], "'objective.env_targets' is \"true\"", "did you mean 'true'?"),
        ([SHUFFLED, NO_LAMBDA], "shuffled has no effect, because λ is 0", "world_model_coeff above 0"),
        ([OTHER, NO_LAMBDA], "other_world has no effect, because λ is 0", "world_model_coeff above 0"),
        ([OTHER, "rollout.explorers=0"], "nothing plays the other world", "rollout.explorers above 0"),
        ([OTHER, "traces.path=a.jsonl"], "traces are of the run's own world", "traces=null"),
        ([SHUFFLED, *ALONE], "a step has one rollout", "rollout.group_size"),
        (
            ["environment.toy_terminal.other_world_seeds=[9]"],
            "no effect with objective.env_targets: true",
            "other_world",
        ),
        ([OTHER, "environment.toy_terminal.other_world_seeds=[0]"], "duplicate seed", "one of the three"),
    ],
    ids=str,
)
def test_a_placebo_without_effect_or_without_a_source_is_refused(words: list[str], message: str, tip: str) -> None:
    with pytest.raises(EchoError) as caught:
        load_config("toy", words)
    assert message in caught.value.message and tip in caught.value.tip and caught.value.exit_code == 2


UNPLAYED = ("rollout.tasks_per_step=0", "objective.use_rl=false")
ENTROPY, FAILED = "objective.env_min_action_entropy=0.5", "objective.max_correct_fraction=0.5"


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        ([ENTROPY, NO_LAMBDA], "env_min_action_entropy 0.5 has no effect, because λ is 0", "entropy: null"),
        ([ENTROPY, *UNPLAYED], "the policy plays no rollout", "rollout.tasks_per_step above 0"),
        ([FAILED, *UNPLAYED], "explorers have no reward", "rollout.tasks_per_step above 0"),
        ([FAILED, UNPLAYED[1]], "max_correct_fraction needs rewards", "set use_rl: true"),
        (["objective.min_correct_fraction=0.5", UNPLAYED[1]], "min_correct_fraction needs rewards", "set use_rl: true"),
        ([FAILED, "objective.min_correct_fraction=0.6"], "no reward is within them", "lower the minimum"),
        (["objective.env_weights.warning=0.5"], "no token of this role", "world_loss_target: all"),
        (["objective.env_weights.end=0.5"], "no token of this role", "end_of_output: true"),
        (["objective.env_weights.context=0.5"], "no token of this role", "one of the roles env_output"),
        (["objective.env_weights.stderr=-1"], "env_weights.stderr is -1", "0 or more"),
        (["objective.env_weights.stderr=much"], "'objective.env_weights.stderr' is \"much\"", "write a number"),
        (["objective.env_weights=0.5"], "'objective.env_weights' is 0.5", "it is a section"),
        (["objective.env_weights.env_output=0"], "leave the env term no token", "above 0"),
    ],
    ids=str,
)
def test_a_selection_that_selects_nothing_or_by_nothing_is_refused(words: list[str], message: str, tip: str) -> None:
    with pytest.raises(EchoError) as caught:
        load_config("toy", words)
    assert message in caught.value.message and tip in caught.value.tip and caught.value.exit_code == 2


def test_weights_of_channels_are_read_and_written() -> None:
    config = load_config("toy", ["objective.env_weights.stderr=0", "objective.env_weights.env_output=0.5", FAILED])
    assert config.objective.env_weights == {"stderr": 0, "env_output": 0.5}
    assert "env_weights:\n    stderr: 0.0\n    env_output: 0.5\n" in config.to_yaml()
    assert load_config("toy", ["objective.env_weights={}"]).objective == load_config("toy").objective
    assert load_config("toy-world-model", ["objective.env_weights.end=2"]).objective.env_weights == {"end": 2}


@pytest.mark.parametrize("word", ["true", "other_world", "shuffled", "random"])
def test_true_and_the_three_placebos_are_read_and_written(word: str) -> None:
    config = load_config("toy", [f"objective.env_targets={word}"])
    assert config.objective.env_targets == (True if word == "true" else word)
    assert f"env_targets: {word}\n" in config.to_yaml()
    rising = ["objective.schedule=linear", "objective.world_model_coeff_end=0.5", NO_LAMBDA]
    assert load_config("toy", [f"objective.env_targets={word}", *rising]).objective.highest_coeff == 0.5


def test_the_placebos_worlds_are_neither_trained_on_nor_measured_nor_of_pretraining() -> None:
    for kind in ("files", "machine"):
        toy = (
            ToyTerminalConfig(kind=kind, world_seeds=(0, 149, 200), ood_world_seeds=(148,))
            if kind == "files"
            else (ToyTerminalConfig(kind=kind, world_seeds=(0, 149, 7), ood_world_seeds=(148,)))
        )
        seeds = toy.placebo_seeds
        assert len(set(seeds)) == 3 and not {*toy.world_seeds, *toy.ood_world_seeds} & {*seeds}
        assert seeds == ((147, 146, 145) if kind == "machine" else (201, 202, 203))
        assert kind == "files" or set(seeds) <= set(SEEDS["evaluation"])
    with pytest.raises(EchoError, match="no machine is left"):
        every = ["environment.toy_terminal.kind=machine", f"environment.toy_terminal.world_seeds={[*range(100)]}"]
        load_config("toy", [OTHER, *every])
