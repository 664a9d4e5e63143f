"""The config keys that may change when a run is resumed: exactly these."""

from __future__ import annotations

from echo_cli.config.schema import free_keys, key_paths

RUN = "steps device threads output_dir run_name track checkpoint checkpoint.every checkpoint.keep traces.path"
MEMORY = "optim.token_budget model.gradient_checkpointing sampler.prefill_tokens"
ENVIRONMENT = (
    "object url provider client headers sessions batch_wait_s attempts connect_timeout_s step_timeout_s retry_s"
)
PROVIDER = "kind image command project_path app port env options start_timeout_s limits"
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
    expected |= _below("sampler", ENDPOINT) | _below("environment.provider.limits", LIMITS)
    assert free_keys() == expected
    assert free_keys() < set(key_paths())
