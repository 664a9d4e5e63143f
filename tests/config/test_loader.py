"""Config files and overrides: errors name the key, the line, and the likely intention."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from echo_cli.config.environment import EnvironmentConfig, Section
from echo_cli.config.loader import configs_folder, find_config, load_config, parse_override
from echo_cli.config.model import ConversationConfig, ModelConfig, SamplerConfig
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.presets import PRESETS
from echo_cli.config.schema import Config, key_paths
from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.errors import EchoError
from echo_cli.runs.provenance import environment_record

SHIPPED = sorted(configs_folder().glob("*.yaml"))


def _file(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _refused(path: Path, *overrides: str) -> EchoError:
    with pytest.raises(EchoError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    assert caught.value.tip
    return caught.value


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_survives_being_written(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(_file(tmp_path, config.to_yaml())) == config
    assert find_config(path.stem) == path


def test_the_shipped_configs_are_what_their_names_say() -> None:
    objective = {path.stem: load_config(path).objective for path in SHIPPED}
    assert objective["toy"].use_rl and objective["toy"].base_coeff > 0
    assert objective["toy-grpo"].use_rl and objective["toy-grpo"].base_coeff == 0
    assert not objective["toy-world-model"].use_rl
    assert objective["toy-own"].use_rl and objective["toy-own"].base_coeff > 0


def test_the_paper_config_is_the_papers_recipe() -> None:
    config = load_config(find_config("paper-qwen3-8b"))
    assert (config.preset, config.objective.base_coeff, config.model.path) == ("paper", 0.05, "Qwen/Qwen3-8B")
    assert (config.objective.clip_low, config.objective.clip_high) == (0.2, 0.28)
    assert (config.objective.rl_normalization, config.objective.env_normalization) == (
        "token_mean",
        "observation_tokens",
    )
    assert (config.optim.lr, config.optim.betas, config.optim.grad_clip) == (1e-6, (0.9, 0.95), 0.2)
    rollout = config.rollout
    assert (rollout.tasks_per_step, rollout.group_size, rollout.temperature) == (16, 16, 0.8)
    assert config.environment.max_turns == 16
    assert rollout.max_episode_tokens + 2 * rollout.max_output_tokens == 16_384


def _keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _sections(model: type[Section]) -> Iterator[type[Section]]:
    """Yield `model` and all sections in it, including optional ones and those in lists."""
    yield model
    for field in model.model_fields.values():
        kinds = [field.annotation]
        while kinds:
            kind = kinds.pop()
            kinds += get_args(kind)
            if isinstance(kind, type) and not get_args(kind) and issubclass(kind, Section):
                yield from _sections(kind)


@pytest.mark.parametrize("name", ["toy", "toy-own", "toy-grpo", "toy-files", "toy-world-model"])
def test_a_toy_config_has_every_key_that_matters_to_the_toy_terminal(name: str) -> None:
    foreign = {f"model.{key}" for key in ModelConfig.model_fields} - {"model.path", "model.init"}
    known = {key for key in key_paths() if not key.startswith("environment.")} - foreign
    known = {key for key in known if key.partition(".")[0] not in ("conversation", "sampler")}
    known -= {
        key for key in known if key.startswith(("model.lora.", "traces.", "environments.", "distributed.", "backend."))
    }
    known |= {f"environment.toy_terminal.{key}" for key in ToyTerminalConfig.model_fields}
    assert known <= set(_keys(yaml.safe_load(find_config(name).read_text())))


def test_the_hf_smoke_config_explains_every_key_about_the_policy() -> None:
    text = find_config("hf-smoke").read_text()
    values = yaml.safe_load(text)
    for name, section in (("model", ModelConfig), ("conversation", ConversationConfig), ("sampler", SamplerConfig)):
        assert values[name].keys() == {key for key, field in section.model_fields.items() if not field.exclude}
        lines = re.search(rf"^{name}:\n((?:  .+\n)+)", text, re.MULTILINE)
        assert lines is not None and all("  # " in line for line in lines[1].splitlines())


def test_the_sandbox_config_explains_every_key_of_an_environment() -> None:
    text = find_config("sandbox").read_text()
    section = text.partition("\nenvironment:\n")[2].partition("\nmodel:\n")[0]
    assert yaml.safe_load(text)["environment"].keys() == EnvironmentConfig.model_fields.keys()
    keys = {key for model in _sections(EnvironmentConfig) for key in model.model_fields}
    assert {key for key in keys if not re.search(rf"\b{key}:", section)} == set()


def _documented() -> list[str]:
    """Return the configs of docs/environments.md and docs/rewards.md."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = "".join((docs / f"{name}.md").read_text() for name in ("environments", "rewards"))
    return re.findall(r"^```yaml\n(environment:\n.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", _documented())
def test_a_documented_config_is_one(text: str, tmp_path: Path) -> None:
    assert load_config(_file(tmp_path, text)).environment.url == "http://127.0.0.1:8000"


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.0e-5", "0.00001", ".1e-4", "+1e-5"])
def test_a_number_is_a_number_in_a_file_and_on_the_command_line(number: str, tmp_path: Path) -> None:
    path = _file(tmp_path, f"optim: {{lr: {number}}}")
    assert load_config(path).optim.lr == 1e-5
    assert load_config(path, [f"optim.lr={number}"]).optim.lr == 1e-5


def test_a_quoted_number_is_an_error_that_says_so(tmp_path: Path) -> None:
    error = _refused(_file(tmp_path, "seed: 0\noptim:\n  lr: '1e-5'\n"))
    assert "'optim.lr' is \"1e-5\"" in error.message and "my.yaml:3" in error.message
    assert error.tip == "write the number without quotes"
    assert "command line: optim.lr='1e-5'" in _refused(_file(tmp_path, "seed: 0"), "optim.lr='1e-5'").message
    section = _refused(_file(tmp_path, "optim:\n  lr: 1e-3"), "optim={lr: '1e-5'}")
    assert "command line: optim={lr: '1e-5'}" in section.message


@pytest.mark.parametrize(
    ("text", "message", "tip"),
    [
        ("sede: 1", "unknown key 'sede' (", "did you mean 'seed'?"),
        ("seed: 1\noptim:\n  lrr: 1", "unknown key 'optim.lrr' (", "did you mean 'optim.lr'?"),
        ("lr: 1", "unknown key 'lr' (", "did you mean 'optim.lr'?"),
        ("rollout:\n  use_rl: true", "unknown key 'rollout.use_rl' (", "did you mean 'objective.use_rl'?"),
        ("objective:\n  lamda: 1", "unknown key 'objective.lamda' (", ""),
        ("steps: many", "'steps' is \"many\"", "write a number"),
        ("steps: 1e2", "'steps' is 100.0", "write an integer"),
        ("steps: -1", "'steps' is -1", ""),
        ("steps: true", "'steps' is true", ""),
        ("seed: 2020-13-45", "'seed' is \"2020-13-45\"", ""),
        ("optim: 3", "'optim' is 3", "it is a section: set its keys, such as optim.lr"),
        ("optim:", "'optim' is null", "it is a section: set its keys, such as optim.lr"),
        ("optim: {lr: .inf}", "'optim.lr' is Infinity", ""),
        ("optim: {lr: .nan}", "'optim.lr' is NaN", ""),
        ("optim: {betas: [0.9]}", "'optim.betas.1' is missing", ""),
        ("objective: {world_model_coeff: -1}", "negative", "set λ to 0 or more"),
        ("objective: {world_model_coeff: .inf}", "'objective.world_model_coeff' is Infinity", ""),
        ("objective: {world_model_coeff: '0.1'}", "'objective.world_model_coeff' is \"0.1\"", "without quotes"),
        ("objective: {use_rl: false, world_model_coeff: 0}", "the loss is always 0", ""),
        ("rollout: {explorers: 0, tasks_per_step: 0}", "no rollouts", ""),
        ("environment: {toy_terminal: {world_seeds: [0, 0]}}", "duplicate seed", ""),
        (
            "environment: {url: 'http://h:1', tasks: {seeds: 2}, observation: [{path: x, rolle: warning}]}",
            "unknown key 'environment.observation.0.rolle'",
            "did you mean 'environment.observation.0.role'?",
        ),
        (
            "environment: {url: 'http://h:1', tasks: {seeds: 2}, reward: {rubric: [{nmae: x}]}}",
            "'environment.reward.rubric.0.name' is missing",
            "",
        ),
        (
            "environment: {url: 'http://h:1', tasks: {seeds: 2}, reward: {rubric: [{name: x, patern: a}]}}",
            "unknown key 'environment.reward.rubric.0.patern'",
            "did you mean 'environment.reward.rubric.0.pattern'?",
        ),
        (
            "environment: {toy_terminal: {world_seds: [3]}}",
            "unknown key 'environment.toy_terminal.world_seds'",
            "did you mean 'environment.toy_terminal.world_seeds'?",
        ),
        ("environment: {toy_terminal: {}, prompt: '# '}", "environment.prompt has no effect with toy_terminal", ""),
        (
            "environment: {url: 'http://h:1', tasks: {toy_terminal: {}}, max_turns: 3}",
            "environment.max_turns has no effect with toy_terminal",
            "under toy_terminal",
        ),
        ("environment: {toy_terminal: {}, url: 'http://h:1', tasks: {seeds: 2}}", "toy_terminal and url", ""),
        ("environment: {url: 'http://h:1', batch_wait_s: 1e12}", "'environment.batch_wait_s' is 1000000000000.0", ""),
        ("environment: {toy_terminal: {world_seeds: [101]}}", "duplicate seed", ""),
        ("environment: {toy_terminal: {world_seeds: []}}", "world_seeds' is []", ""),
        ('run_name: "a\\0b"', "'run_name' is", ""),
        ("seed: 1\nseed: 2", "duplicate key 'seed'", "keep one"),
        ("1: 2", "unknown key '1'", "top-level keys: steps, seed"),
        ("", "is empty", "start from a shipped config"),
        ("# nothing\n", "is empty", "start from a shipped config"),
        ("- seed", "is not a mapping", "seed: 0"),
        ("seed: [1", "invalid YAML", ""),
        ("seed: 1\n\tsteps: 2", "invalid YAML", ""),
        ("seed: 1\n---\nseed: 2", "invalid YAML", ""),
        ("? [a, b]\n: 2", "invalid YAML", ""),
        ("a: &a [*a]", "aliases", ""),
        ("[" * 600, "invalid YAML", ""),
        ("seed: !!int x", "invalid YAML", ""),
        ("seed: !!binary aGk=", "invalid YAML", ""),
        ("seed: !!python/object/apply:os.system ['false']", "invalid YAML", ""),
        (b"\xff\xfe\x00", "it is UTF-16, not UTF-8 text", "iconv -f UTF-16 -t UTF-8"),
        ("seed: 1".encode("utf-16"), "it is UTF-16, not UTF-8 text", "iconv -f UTF-16 -t UTF-8"),
        ("seed: 1\nrun: é".encode("latin-1"), "line 2 is not UTF-8", "iconv -f LATIN1"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(text: str | bytes, message: str, tip: str, tmp_path: Path) -> None:
    error = _refused(_file(tmp_path, text))
    assert message in error.message
    assert "my.yaml" in error.message
    assert tip in (error.tip or "")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lr", "'optim.lr' is not an override"),
        ("=1", "is not an override"),
        ("optim..lr=1", "is not an override"),
        ("optim.lr=[1", "is not valid YAML"),
        ("optim.lr=&a [*a]", "is not valid YAML"),
        ("optim.lr=\udcff", "is not valid YAML"),
        ("optim.lr.x=1", "'optim.lr' is a value, not a section"),
        ("optim.lr=", "'optim.lr' is null"),
        ("environment.toy_terminal.families=[kye]", "no task family 'kye' of kind files"),
        ("objective.world_model_coeff=-0.1", "negative (command line: objective.world_model_coeff=-0.1"),
    ],
)
def test_a_wrong_override_is_refused(word: str, message: str, tmp_path: Path) -> None:
    assert message in _refused(_file(tmp_path, "optim: {lr: 1e-3}"), word).message


@pytest.mark.parametrize(
    "word",
    [
        "environment.headers={Key: hunter2}",
        "environment.headers.Key=hunter2",
        "environment.headers={Key: hunter2: }",
        "environment={url: 'http://h:1', tasks: {seeds: 2}, headers: {Key: hunter2}}",
        "sampler.headers={Key: hunter2}",
        "sampler.headers.Key=hunter2",
        "sampler={kind: openai, url: 'http://h:1', headers: {Key: hunter2}}",
    ],
)
def test_a_header_that_is_a_secret_is_not_repeated(word: str, tmp_path: Path) -> None:
    file = _file(tmp_path, "environment: {url: 'http://h:1', tasks: {seeds: 2}}")
    for more in ((), ("environment.reward.mode=final", "environment.headers.X=${X}")):
        assert "hunter2" not in str(vars(_refused(file, word, *more)))


PROVIDER = "environment: {provider: {kind: process, command: [serve, '{port}']}, tasks: {seeds: 2}, explorer: [a]}"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("environment.provider.env={API_KEY: hunter2}", "environment.provider.env.API_KEY is a secret in plain text"),
        ("environment.provider.env.DB_PASSWORD=hunter2", "environment.provider.env.DB_PASSWORD is a secret"),
        ("environment.provider.env.OTHER=hf_hunter2hunter2hunter2", "environment.provider.env.OTHER is a secret"),
        ("environment.provider.env.URL=https://me:hunter2@host", "environment.provider.env.URL is a secret"),
        ("environment.provider.env.A='Bearer hunter2hunter2'", "environment.provider.env.A is a secret"),
        ("environment.provider.env.A_TOKEN={a: hunter2}", "'environment.provider.env.A_TOKEN' is not valid"),
        ("environment.provider.options={auth: [{token: hunter2}]}", "environment.provider.options.auth.token is a sec"),
        ("environment.provider.command=[serve, '{port}', --api-key, hunter2]", "environment.provider.command holds a"),
        ("environment.provider.command=[serve, '{port}', --token=hunter2]", "environment.provider.command holds a se"),
        (
            "environment={object: a:B, tasks: {seeds: 2}, object_options: {key: hunter2}}",
            "object_options.key is a secr",
        ),
        ("environment={url: 'http://me:hunter2@h', tasks: {seeds: 2}}", "environment.url contains credentials"),
        ("environment.url=ftp://me:hunter2@h", "'environment.url' is not valid"),
        ("environment.provider.env={API_KEY: hunter2: }", "is not valid YAML"),
    ],
)
def test_a_secret_in_a_config_is_refused_and_not_repeated(word: str, message: str, tmp_path: Path) -> None:
    refused = _refused(_file(tmp_path, PROVIDER), word)
    assert message in refused.message and "hunter2" not in str(vars(refused))


@pytest.mark.parametrize(
    "env",
    [
        *({"API_KEY": value} for value in ("${API_KEY}", "", "off", "/run/secrets/key", "${A}:${B}")),
        {"MAX_TOKENS": "4096", "MONKEY": "banana", "TOKENIZERS_PARALLELISM": "false", "PWD": "folder", "MODE": "fast"},
        {"URL": "postgres://me:${PASSWORD}@host/db", "HOME": "https://host:8000/a@b"},
    ],
)
def test_a_variable_that_is_no_secret_or_refers_to_one_is_taken(env: dict[str, str], tmp_path: Path) -> None:
    loaded = load_config(_file(tmp_path, PROVIDER), [f"environment.provider.env={json.dumps(env)}"]).environment
    assert loaded.provider is not None and loaded.provider.env == env


def test_a_command_line_is_recorded_without_secrets() -> None:
    words = [
        "--token=hunter2",
        "sampler.headers.Authorization=${A}",
        "optim.lr=1",
        "a=hf_hunter2hunter2hunter2",
        "train",
    ]
    recorded = environment_record(0, ["echo-cli", *words], "cpu", 1)["argv"]
    assert recorded == ["echo-cli", "--token=***", words[1], "optim.lr=1", "a=***", "train"]


def test_what_is_of_one_source_has_no_place_with_another(tmp_path: Path) -> None:
    text = "environment: {url: 'http://h:1', tasks: {seeds: 2}, explorer: [a], client: a.b:C, headers: {X: '${X}'}}"
    assert "environment.object_options has no effect with url" in (
        _refused(_file(tmp_path, text), "environment.object_options={a: 1}").message
    )
    moved = load_config(_file(tmp_path, text), ["environment.object=a.b:D"]).environment
    assert (moved.object, moved.client, moved.headers) == ("a.b:D", None, {})
    both = ["environment.client=a.b:E", "environment.object=a.b:D"]
    assert "environment.client has no effect with object" in _refused(_file(tmp_path, text), *both).message


@pytest.mark.parametrize(
    "words",
    [
        ["environment.toy_terminal=null", "environment.url=http://h:1"],
        ["environment.url=http://h:1", "environment.toy_terminal=null"],
        ["environment.preset=maze", "environment.url=http://h:1"],
        ["environment.toy_terminal=null", "environment.preset=maze", "environment.url=http://h:1"],
    ],
)
def test_toy_worlds_that_the_command_line_drops_are_no_tasks_of_its_server(words: list[str], tmp_path: Path) -> None:
    assert "environment.url has no tasks" in _refused(find_config("toy"), *words).message
    served = load_config("toy", [*words, "environment.tasks.seeds=9", "rollout.explorers=0"]).environment
    assert served.url == "http://h:1" and served.tasks is not None and served.tasks.toy_terminal is None
    from_traces = _file(tmp_path, "environment: {none: true}\ntraces: {path: a}\nrollout: {explorers: 0}")
    assert "environment.url has no tasks" in _refused(from_traces, "environment.url=http://h:1").message


def test_a_server_plays_the_toy_worlds_that_the_command_line_keeps() -> None:
    for words in ([], ["environment.preset=null"], ["environment.preset=toy_terminal"]):
        served = load_config("toy", ["environment.toy_terminal.max_turns=7", *words, "environment.url=http://h:1"])
        assert served.environment.toy_worlds is not None and served.environment.toy_worlds.max_turns == 7


def test_the_toy_terminal_takes_no_key_of_the_files_environment(tmp_path: Path) -> None:
    text = "environment: {url: 'http://h:1', preset: maze, tasks: {seeds: 2}, prompt: '# ', sessions: 3}"
    toy = load_config(_file(tmp_path, text), ["environment.toy_terminal={}"]).environment
    assert toy == EnvironmentConfig(toy_terminal=ToyTerminalConfig(), sessions=3)
    asked = _refused(_file(tmp_path, text), "environment.toy_terminal={}", "environment.preset=maze")
    assert "environment.preset has no effect with toy_terminal" in asked.message
    assert "environment.url=" in str(asked.tip)
    none = ["environment.none=true", "traces.path=a", "objective.use_rl=false"]
    none += ["rollout.tasks_per_step=0", "rollout.explorers=0"]
    assert load_config(_file(tmp_path, text), none).environment == EnvironmentConfig(none=True)


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    error = _refused(_file(tmp_path, "environment: 3"), "environment.tasks.seeds=2")
    assert "'environment' is a value, not a section" in error.message


def test_a_text_is_the_name_of_a_shipped_config_or_the_path_of_a_file(tmp_path: Path) -> None:
    file = _file(tmp_path, "seed: 1")
    assert load_config("toy", ["seed=2"]) == load_config(find_config("toy"), ["seed=2"])
    assert load_config(str(file)) == load_config(file)
    with pytest.raises(EchoError, match="no config named 'toyy'"):
        load_config("toyy")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match=r"config file .*nothing\.yaml does not exist"):
        find_config(str(tmp_path / "nothing.yaml"))


def test_what_can_be_read_only_once_is_no_config(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"  # as `<(…)` in bash
    os.mkfifo(pipe)
    for name, what in (("-", "stdin"), (str(pipe), f"a pipe, {pipe}")):
        with pytest.raises(EchoError, match=f"^cannot read a config from {what}$") as caught:
            find_config(name)
        assert "save it to a file first" in str(caught.value.tip)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(EchoError, match="no config named 'toy-world'") as caught:
        find_config("toy-world")
    assert caught.value.tip == "did you mean 'toy-world-model'?"


def test_the_last_of_two_overrides_counts_and_values_are_yaml(tmp_path: Path) -> None:
    config = load_config(_file(tmp_path, "seed: 1"), ["seed=2", "seed=3", "optim.betas=[0.5, 0.6]", "run_name=null"])
    assert (config.seed, config.optim.betas, config.run_name) == (3, (0.5, 0.6), None)
    dated = parse_override("a.b=2020-01-01")
    assert (dated.keys, dated.value) == (("a", "b"), "2020-01-01")


def test_a_file_that_contradicts_its_preset_is_refused(tmp_path: Path) -> None:
    text = find_config("toy").read_text().replace("preset: null", "preset: paper")
    error = _refused(_file(tmp_path, text))
    for key in ("objective.env_normalization", "objective.world_model_coeff", "optim.betas"):
        assert key in error.message
    assert "optim.lr" not in error.message and "clip_low" not in error.message  # not the preset's, and the same
    assert re.search(r"preset 'paper' .*my\.yaml:\d+\)$", error.message)
    assert "preset=paper" in str(error.tip)
    assert "optim.grad_clip" in _refused(_file(tmp_path, "preset: paper\noptim: {grad_clip: 0.5}")).message


def test_what_a_preset_does_not_set_or_sets_alike_stands_beside_it(tmp_path: Path) -> None:
    text = "preset: paper\noptim: {lr: 1e-3, betas: [0.9, 0.95]}\nobjective: {clip_low: 0.2, min_correct_fraction: 0.5}"
    config = load_config(_file(tmp_path, text))
    assert (config.preset, config.optim.lr, config.optim.grad_clip) == ("paper", 1e-3, 0.2)
    assert config.objective.min_correct_fraction == 0.5


def test_the_preset_of_the_command_line_replaces_the_files_and_wins_over_its_keys(tmp_path: Path) -> None:
    toy = find_config("toy")
    assert load_config(toy, ["preset=paper"]).objective == ObjectiveSettings(**PRESETS["paper"].objective)
    path = _file(tmp_path, "preset: paper")
    assert load_config(path, ["preset=prime"]).optim == load_config(_file(tmp_path, "preset: prime")).optim
    assert load_config(_file(tmp_path, "preset: paper"), ["preset=null"]) == load_config(_file(tmp_path, "seed: 0"))
    clipped = load_config(toy, ["preset=released", "objective.clip_high=0.3"]).objective
    assert (clipped.clip_high, clipped.rl_normalization) == (0.3, "sequence_mean")


@pytest.mark.parametrize("words", [["objective.world_model_coeff=0.01"], ["optim={lr: 1e-3}"]])
def test_a_config_names_a_preset_only_while_it_has_its_settings(words: list[str], tmp_path: Path) -> None:
    path = _file(tmp_path, "preset: released")
    assert load_config(path).preset == "released"
    changed = load_config(path, words)
    assert changed.preset is None
    assert load_config(_file(tmp_path, changed.to_yaml())) == changed


def test_an_error_names_the_overrides_that_cause_it_and_no_other(tmp_path: Path) -> None:
    url = _file(tmp_path, "environment: {url: 'http://h:1', tasks: {seeds: 2}}\nrollout: {explorers: 0}")
    words = ["seed=3", "optim.lr=1e-3", "environment.object_options={a: 1}", "steps=9"]
    message = _refused(url, *words).message
    assert message.endswith(f"(command line: environment.object_options={{a: 1}} on {url})")
    both = ["rollout.tasks_per_step=0", "steps=9", "rollout.explorers=0", "objective.use_rl=false"]
    found = _refused(_file(tmp_path, "seed: 1"), *both).message
    assert "(command line: rollout.tasks_per_step=0 rollout.explorers=0 on " in found
    wrong = _file(tmp_path, "objective: {world_model_coeff: -1}")
    assert _refused(wrong, "steps=9").message.endswith(f"({wrong})")


def test_a_schedule_that_is_not_used_is_named() -> None:
    for name, value in (("schedule_values", (0.1,)), ("schedule_steps", (1,))):
        with pytest.raises(EchoError, match=f"does not use {name}$"):
            ObjectiveSettings(**{name: value})  # type: ignore[arg-type]


def test_a_shipped_config_lists_nothing_that_its_preset_sets() -> None:
    for path in SHIPPED:
        values = yaml.safe_load(path.read_text())
        if values.get("preset") is not None:
            sections = PRESETS[values["preset"]].sections
            assert not [key for name in sections for key in sections[name] if key in values.get(name, {})], path


def test_the_paths_of_a_config_are_absolute_and_names_stay_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = ["traces.path=[a.jsonl, ~/b.jsonl, /c.jsonl]", "model.path=mine", "model.chat_template=../t.jinja"]
    words += ["sampler.kind=openai", "sampler.url=http://x", "sampler.model=m", "sampler.sync=sglang"]
    words += [
        "sampler.weights=w",
        "rollout.explorers=0",
        "environment.provider={kind: uv, project_path: env}",
        "environment.tasks.file=t.yaml",
    ]
    config = load_config("hf-smoke", words)
    assert config.traces is not None and config.environment.provider and config.environment.tasks
    assert config.traces.path == (f"{tmp_path}/a.jsonl", f"{tmp_path}/home/b.jsonl", "/c.jsonl")
    assert config.model.path == f"{tmp_path}/mine"
    assert config.model.chat_template == f"{tmp_path.parent}/t.jinja"
    assert config.sampler.weights == f"{tmp_path}/w"
    assert config.environment.provider.project_path == f"{tmp_path}/env"
    assert config.environment.tasks.file == f"{tmp_path}/t.yaml"
    for name in ("random-qwen3", "Qwen/Qwen3-0.6B", "nowhere"):
        assert load_config("hf-smoke", [f"model.path={name}"]).model.path == name
    (tmp_path / "tiny-base").mkdir()
    assert load_config("toy", ["model.path=tiny-base"]).model.path == "tiny-base"


def test_the_defaults_are_a_config() -> None:
    assert Config().steps == 60


@pytest.mark.parametrize("text", ["true", "yes please", "[1]"])
def test_no_file_runs_or_fetches_a_models_code(text: str, tmp_path: Path) -> None:
    path = _file(tmp_path, f"model: {{kind: hf, path: a/b, trust_remote_code: {text}, fetch: all}}")
    model = load_config(path).model
    assert (model.trust_remote_code, model.fetch) == (False, "never")
    model = load_config(path, ["model.trust_remote_code=true", "model.fetch=all"]).model
    assert (model.trust_remote_code, model.fetch) == (True, "all")
    again = _file(tmp_path, load_config(path, ["model.trust_remote_code=true"]).to_yaml())
    assert not load_config(again).model.trust_remote_code
