"""Inputs that try to act when a command looks at them: configs, runs, pools, model folders and traces.

Each leaves a marker if it succeeds: a file in `markers`, a request to a recorder, or the value of an environment
variable anywhere. Apart from that, they are real inputs, made by the commands, so that a command that accepts
them gets as far as it can.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hostile_texts import ESCAPES, HTML
from pool_samples import ORIGIN, TOKENIZER, printed
from tiny_run import train
from trace_files import episode, trace_file

from echo_cli.files import append_jsonl, read_jsonl, sha256_of
from echo_cli.models.hf.random_qwen3 import make_random_qwen3
from echo_cli.runs.pool_folder import write_pool

SECRETS = {
    "HF_TOKEN": "hf_canary0f3a91",
    "WANDB_API_KEY": "wandb-canary-77b2c4",
    "MY_TOKEN": "canary-of-mine-5c1d88",
    "AWS_SECRET_ACCESS_KEY": "aws-canary-e3f960",
}
"""Environment variables of the person who runs the commands."""

SHADOWED = ("pydantic", "yaml", "torch", "numpy", "uvicorn", "marker_environment", "marker_provider", "sitecustomize")
"""Modules in the folder in which the commands run."""

_SHORT: dict[str, Any] = {
    "steps": 1,
    "threads": 1,
    "rollout": {"tasks_per_step": 1, "group_size": 2, "explorers": 0},
    "evaluation": {"heldout_rollouts": 1, "validation_rollouts": 0},
}
"""Sections of a config for a run of one small step."""
_REST: dict[str, Any] = {
    "tasks": {"seeds": 8, "validation": 0.25, "heldout": 0.25},
    "max_turns": 2,
    "action": {"template": {"command": "{text}"}},
    "observation": [{"path": "output"}],
    "explorer": ["ls"],
    "retry_s": 0.0,
    "attempts": 1,
    "connect_timeout_s": 2.0,
    "step_timeout_s": 2.0,
    "max_message_mb": 1.0,
}
"""Keys of an environment's section beside its source."""


@dataclass(frozen=True)
class HostileInputs:
    """The inputs, below `root`; each is made when it is first used and is not changed afterwards.

    `finished` is a run of the toy terminal, `recorder` a URL at which nobody may ask.
    """

    root: Path
    finished: Path
    recorder: str

    @property
    def markers(self) -> Path:
        """Folder to which executed code writes a file."""
        return self.root / "markers"

    def found(self) -> list[str]:
        """Return the names of the markers, and remove them."""
        names = sorted(path.name for path in self.markers.iterdir())
        for name in names:
            (self.markers / name).unlink()
        return names

    def code(self, name: str) -> str:
        """Return Python source that leaves the marker `name`, with all environment variables in it."""
        return (
            "import os\n"
            f"with open({str(self.markers / name)!r}, 'a') as marker:\n"
            "    marker.write(repr(dict(os.environ)))\n"
        )

    def shell(self, name: str) -> list[str]:
        """Return a command line that leaves the marker `name`; it is not a server."""
        return ["sh", "-c", f"env > {self.markers / name}; echo {{port}}; exit 7"]

    @cached_property
    def elsewhere(self) -> Path:
        """A folder with modules that shadow installed ones and leave markers; commands run in it."""
        folder = self.root / "elsewhere"
        folder.mkdir()
        for name in SHADOWED:
            (folder / f"{name}.py").write_text(self.code(f"module-{name}") + _ENVIRONMENT_CLASS)
        return folder

    # Environments that a config may name.

    @property
    def environments(self) -> Mapping[str, dict[str, Any]]:
        """Sources of environments by kind: a command, a class and an address."""
        provider = {"kind": "process", "command": self.shell("command"), "env": {"TAKEN": "${MY_TOKEN}"}}
        return {
            "command": {"provider": {**provider, "start_timeout_s": 5.0}, "headers": {"X-Key": "${MY_TOKEN}"}},
            "class": {"object": "marker_environment:Environment"},
            "url": {"url": self.recorder, "headers": {"Authorization": "Bearer ${HF_TOKEN}"}},
        }

    def config(self, name: str, environment: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]) -> Path:
        """Return a config file for a short run, by default in the toy terminal; `environment` names a source."""
        path = self.root / f"{name}.yaml"
        changes = {**sections} if environment is None else {**sections, "environment": {**environment, **_REST}}
        path.write_text(yaml.safe_dump(_merged(_SHORT, changes), allow_unicode=False))
        return path

    def config_of_server(self, name: str, url: str) -> Path:
        """Return a config file for a short run in the environment of a server."""
        return self.config(name, self.server_at(url))

    def server_at(self, url: str) -> dict[str, Any]:
        """Return the source of an environment at `url`, to which headers carry two secrets."""
        headers = {"Authorization": "Bearer ${MY_TOKEN}", "X-Other": "${AWS_SECRET_ACCESS_KEY}"}
        return {"url": url, "headers": headers}

    def config_of_own_server(self, name: str, mode: str) -> Path:
        """Return a config file whose environment is the hostile server as a process that gets a secret."""
        script = str(Path(__file__).with_name("hostile_server.py"))
        provider = {"kind": "process", "command": ["python", script, "{port}", mode], "env": {"TAKEN": "${MY_TOKEN}"}}
        return self.config(name, {"provider": provider})

    def run(self, name: str, environment: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]) -> Path:
        """Return a copy of the finished run, with hostile text in its files and a config that names an environment."""
        folder = self.root / "runs" / name
        shutil.copytree(self.finished, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        changes: dict[str, Any] = {**sections}
        if environment is not None:
            config["environment"] = {**environment, **_REST}
            self._keep_pools(folder)
        changes["output_dir"] = f"{folder.parent}/{ESCAPES}"
        (folder / "config.yaml").write_text(yaml.safe_dump(_merged(config, changes), allow_unicode=False))
        _poison_texts(folder)
        self._link_outputs(folder)
        return folder

    def run_of_model(self, name: str, source: Path, model: Mapping[str, Any]) -> Path:
        """Return a copy of the run `source` whose config names another model, and whose checkpoints have its code."""
        folder = self.root / "runs" / name
        shutil.copytree(source, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(_merged(config, {"model": model}), allow_unicode=False))
        for checkpoint in (folder / "checkpoints").glob("step_*"):
            for file in ("config.json", "tokenizer_config.json", "modeling_marker.py"):
                shutil.copy(self.model / file, checkpoint)
            _seal(checkpoint)
        return folder

    def _keep_pools(self, folder: Path) -> None:
        for name in ("validation", "heldout"):
            kept = printed(f"{ESCAPES}\n", f"{HTML}\n")
            append_jsonl(folder / f"pool_{name}.jsonl", [kept.to_json()])

    def _link_outputs(self, folder: Path) -> None:
        """Replace the names under which commands write into a run by links to a file of the user."""
        for name in ("report.html", "heldout_env_ce.png", "heldout_env_ce.svg", "heldout_env_ce.csv"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(self.precious)

    @cached_property
    def precious(self) -> Path:
        """A file of the user, to which links point."""
        path = self.root / "precious.txt"
        path.write_text("precious\n")
        return path

    # Models.

    @cached_property
    def model(self) -> Path:
        """A model folder whose architecture and tokenizer are Python files of its own."""
        return self._with_code(self.plain_model, self.root / "model-with-code")

    @cached_property
    def plain_model(self) -> Path:
        """A model folder without code."""
        folder = self.root / "plain-model"
        folder.mkdir()
        make_random_qwen3(folder, 0)
        return folder

    def _with_code(self, source: Path, folder: Path) -> Path:
        shutil.copytree(source, folder)
        (folder / "modeling_marker.py").write_text(self.code("model-code") + _MODEL_CLASSES)
        _change_json(
            folder / "config.json",
            model_type="marker",
            architectures=["MarkerModel"],
            auto_map={
                "AutoConfig": "modeling_marker.MarkerConfig",
                "AutoModelForCausalLM": "modeling_marker.MarkerModel",
            },
        )
        _change_json(
            folder / "tokenizer_config.json",
            tokenizer_class="MarkerTokenizer",
            auto_map={"AutoTokenizer": [None, "modeling_marker.MarkerTokenizer"]},
        )
        return folder

    @cached_property
    def pickled_model(self) -> Path:
        """A model folder whose weights are a pickle."""
        folder = shutil.copytree(self.plain_model, self.root / "pickled-model")
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(self.pickle("pickled-weights"))
        return folder

    @cached_property
    def templated_model(self) -> Path:
        """A model folder whose chat template tries to leave Jinja's sandbox."""
        folder = shutil.copytree(self.plain_model, self.root / "templated-model")
        marker = self.markers / "template"
        (folder / "chat_template.jinja").write_text(
            f"{{{{ cycler.__init__.__globals__.os.popen('touch {marker}').read() }}}}"
            "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        )
        return folder

    @cached_property
    def adapter_of_hub(self) -> Path:
        """An adapter whose base would have to be fetched."""
        folder = self.root / "adapter-of-hub"
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(self.plain_model / name, folder)
        for path in self.plain_model.glob("chat_template*"):
            shutil.copy(path, folder)
        values = {"base_model_name_or_path": "someone/base", "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4}
        values |= {"lora_alpha": 8, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(values))
        (folder / "adapter_model.safetensors").write_bytes(b"")
        return folder

    def pickle(self, name: str) -> bytes:
        """Return a pickle that leaves the marker `name` when it is loaded."""
        return pickle.dumps(_Touch(str(self.markers / name)))

    # Pools and traces.

    @cached_property
    def pool(self) -> Path:
        """A valid pool with hostile texts."""
        folder = self.root / "pools" / "pool"
        folder.parent.mkdir(exist_ok=True)
        provenance = ORIGIN.model_copy(
            update={"environment": {ESCAPES: [HTML, {"object": "marker_environment:Environment"}]}}
        )
        write_pool(folder, [printed(f"{ESCAPES}\n", f"{HTML}\n")], TOKENIZER, provenance)
        return folder

    def changed_pool(self, name: str, change: Callable[[Path], object]) -> Path:
        """Return a copy of the pool after `change`."""
        folder = shutil.copytree(self.pool, self.root / "pools" / name)
        change(folder)
        return folder

    @cached_property
    def traces(self) -> Path:
        """A trajectory file with hostile texts."""
        texts = [f"{HTML}{ESCAPES}{number}\n" for number in range(12)]
        return trace_file(self.root, [episode((ESCAPES, text), ("ls", text)) for text in texts], "hostile.jsonl")

    @cached_property
    def chats(self) -> Path:
        """Chats for `traces import openai`: one good, then text that names tools, and one that is not a chat."""
        call = {"id": "1", "type": "function", "function": {"name": ESCAPES, "arguments": json.dumps({"cmd": ESCAPES})}}
        messages = [
            {"role": "user", "content": HTML},
            {"role": "assistant", "content": ESCAPES, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": f"{ESCAPES} !!python/object/apply:os.system [id]"},
        ]
        lines = [json.dumps({"messages": messages}), json.dumps({"messages": [{"role": ESCAPES, "content": ESCAPES}]})]
        path = self.root / "chats.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        return path


class _Touch:
    """Value whose unpickling touches a file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._path}",)


def train_run(run: Path, model: Path | None = None) -> Path:
    """Train a run of one step on tasks of one family, with the Hugging Face model in the folder `model` if given."""
    words = ["--config", "hf-smoke", f"model.path={model}"] if model else []
    words += ["evaluation.kept_trajectories=2", "evaluation.heldout_rollouts=1"]
    assert train(run, "--steps", "1", *words, "environment.toy_terminal.families=[key]") == 0
    return run


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        merged[key] = (
            _merged(old, change)
            if isinstance(old, dict) and isinstance(change, dict) and key != "environment"
            else change
        )
    return merged


def _poison_texts(folder: Path) -> None:
    """Put hostile text where a run's files have text."""
    path = folder / "environment.json"
    record = json.loads(path.read_text())
    record |= {
        "platform": ESCAPES,
        "git_commit": HTML,
        "device": ESCAPES,
        "argv": ["echo-cli", "train", "--config", f"../../{ESCAPES}"],
    }
    path.write_text(json.dumps(record))
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    rows[-1]["warnings"] = [{"signal": ESCAPES, "reason": f"{HTML}{ESCAPES}", "step": 1}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name in ("trajectories.jsonl", "rollouts.jsonl"):
        if (folder / name).is_file():
            rows = list(read_jsonl(folder / name))
            for row in rows:
                row["task_id"], row["group_id"] = f"{HTML}{ESCAPES}", ESCAPES
            (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _seal(checkpoint: Path) -> None:
    """Write the sizes and hashes of a checkpoint's files, as its author can."""
    path = checkpoint / "meta.json"
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file != path]
    named = {file.relative_to(checkpoint).as_posix(): file for file in files}
    sealed = {name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for name, file in named.items()}
    _change_json(path, files=sealed)


def _change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


_ENVIRONMENT_CLASS = """
try:
    from openenv.core.env_server.interfaces import Environment as _Base
    from openenv.core.env_server.types import Action, Observation, State

    class Said(Action):
        command: str

    class Environment(_Base[Said, Observation, State]):
        def reset(self, seed=None, episode_id=None, **_):
            return Observation()

        def step(self, action, timeout_s=None, **_):
            return Observation()

        @property
        def state(self):
            return State()
except ImportError:
    pass
"""

_MODEL_CLASSES = """
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

class MarkerConfig(Qwen3Config):
    model_type = "marker"

class MarkerModel(Qwen3ForCausalLM):
    config_class = MarkerConfig

class MarkerTokenizer(PreTrainedTokenizerFast):
    pass
"""
