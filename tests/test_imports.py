"""The direction of imports: data flows down one list, and a module imports only what comes before it.

Imports are read from the source with `ast`, those inside functions and `if TYPE_CHECKING` included, so a lazy
import does not hide an arrow that points the wrong way.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "echo_cli"
TOY_TERMINAL_ENV = ROOT / "envs" / "toy_terminal_env"

# The data's way, after the few words that every step shares (error to config). Where an arrow and the story
# differ, the arrow counts: a policy takes its own gradient step, so it stands below batch and objective.
# A new module takes its place here, below everything it imports.
ORDER = (
    "config",
    "environments",
    "objective",
    "models",
    "models.hf",
    "models.endpoint",
    "rollouts",
    "runs",
    "traces",
    "traces.inspection",
    "evaluation",
    "evaluation.dream",
    "training",
    "sweeps",
    "reports",
    "cli",
    "cli.display",
    "errors",
    "files",
    "seeds",
    "metrics",
    "statistics",
    "sweeps.verdict",
    "trajectory",
    "view",
    "rollouts.behaviour",
    "config.objective",
    "config.environment",
    "config.model",
    "config.schema",
    "config.loader",
    "training.collapse",
    "environments.task",
    "environments.faults",
    "environments.client",
    "environments.protocol",
    "event_loop",
    "environments.action_schema",
    "environments.actions",
    "environments.observations",
    "environments.tasks",
    "environments.text_environment",
    "pipe",
    "environments.openenv",
    "environments.toy_source",
    "environments.toy",
    "environments.task_worlds",
    "environments.no_worlds",
    "environments.openenv.secret",
    "environments.openenv.address",
    "concurrency",
    "environments.openenv.server_info",
    "environments.openenv.websocket",
    "environments.openenv.wire_message",
    "environments.openenv.websocket_client",
    "deadline",
    "environments.openenv.package",
    "environments.openenv.in_process_session",
    "environments.openenv.in_process_client",
    "environments.openenv.typed_client",
    "environments.openenv.provider_kinds",
    "environments.openenv.provider_host",
    "environments.openenv.provider",
    "environments.worlds",
    "models.tokenizer",
    "models.renderer",
    "models.chat_renderer",
    "models.language_model",
    "models.tiny",
    "models.tiny_folder",
    "models.hf.hf_package",
    "models.hf.random_qwen3",
    "models.hf.weights",
    "models.hf.tokenizer",
    "models.hf.renderer",
    "models.hf.kv_cache",
    "models.hf.lora",
    "models.hf.model",
    "models.hf.loading",
    "models.device",
    "models.device_memory",
    "models.out_of_memory",
    "models.architecture",
    "models.memory",
    "objective.batch",
    "models.sampler",
    "models.endpoint.endpoint",
    "models.endpoint.client",
    "models.endpoint.sampler",
    "models.endpoint.weight_sync",
    "models.endpoint.served_policy",
    "objective.advantages",
    "objective.schedule",
    "objective.filters",
    "objective.logprobs",
    "objective.loss",
    "models.policy",
    "rollouts.episode",
    "traces.truncate",
    "traces.inspection.tally",
    "traces.inspection.volatile",
    "trace",
    "traces.inspection.role_account",
    "traces.inspection.boundaries",
    "traces.inspection.outputs",
    "traces.inspection.duplicates",
    "traces.inspection.account",
    "traces.corpus",
    "traces.builder",
    "traces.json_records",
    "traces.formats",
    "traces.formats.openai",
    "traces.formats.anthropic",
    "traces.formats.awm",
    "traces.formats.openenv",
    "traces.formats.terminus",
    "traces.formats.atif",
    "traces.formats.terminal_line",
    "traces.formats.asciicast",
    "traces.formats.asciinema",
    "traces.formats.echo",
    "traces.importing",
    "traces.retokenize",
    "traces.openai_export",
    "traces.trace_mask",
    "traces.training_data",
    "evaluation.heat",
    "evaluation.dream.edit",
    "evaluation.dream.replies",
    "evaluation.dream.generation",
    "rollouts.rollout",
    "rollouts.random_actions",
    "rollouts.watched_episode",
    "rollouts.environment_findings",
    "rollouts.environment_check",
    "runs.pools",
    "runs.pool_folder",
    "runs.observation",
    "evaluation.evaluator",
    "runs.checkpoints",
    "runs.directory",
    "runs.summary",
    "training.session",
    "training.trackers.tracking",
    "training.trackers",
    "training.trackers.tensorboard",
    "training.trackers.trackio",
    "training.trackers.wandb",
    "training.trackers.host",
    "evaluation.pool_building",
    "runs.export",
    "training.loop",
    "training.benchmark",
    "runs.curves",
    "reports.figure",
    "reports.run_figure",
    "training.plan",
    "training.experiment",
    "sweeps.plan",
    "sweeps.runner",
    "sweeps.results",
    "sweeps.tables",
    "reports.sweep_figure",
    "sweeps.files",
    "evaluation.match",
    "evaluation.measures",
    "evaluation.baselines",
    "evaluation.pass_at_k",
    "evaluation.token_losses",
    "evaluation.records",
    "evaluation.dream.scoring",
    "evaluation.dream.session",
    "evaluation.dream.dream_session",
    "evaluation.loaded_run",
    "evaluation.run_evaluation",
    "evaluation.comparison",
    "evaluation.named_models",
    "evaluation.model_evaluation",
    "runs.recordings",
    "traces.exporting",
    "reports.episode_view",
    "cli.display.tables",
    "cli.display.text_cells",
    "cli.display.token_strip",
    "cli.display.transcript",
    "cli.display.inspection",
    "reports.report_chart",
    "reports.content",
    "reports.measurements",
    "reports.run_content",
    "reports.charts",
    "reports.html",
    "reports.page_episodes",
    "reports.page",
    "reports.report",
    "cli.display.environment",
    "reports.sweep_page",
    "cli.display.evaluation",
    "cli.display.dream",
    "reports.evaluation_figure",
    "cli.display.progress",
    "cli.display.sweep_progress",
    "cli.interrupt",
    "cli.shell_hook",
    "cli.commands",
    "cli.options",
    "cli.commands.train",
    "cli.commands.sweep_lambda",
    "cli.commands.eval_heldout",
    "cli.commands.dream",
    "cli.commands.plot",
    "cli.commands.report",
    "cli.commands.pool",
    "cli.commands.export",
    "cli.commands.traces",
    "cli.commands.env",
    "cli.commands.bench",
    "cli.commands.inspect",
    "cli.main",
    "__main__",
)

# `echo-cli --help` answers at once: these load none of the heavy libraries until a command needs them.
LIGHT = (
    "cli.main",
    "config.schema",
    "environments.task",
    "runs.directory",
    "reports.run_figure",
    "sweeps.plan",
    "sweeps.runner",
    "training.trackers.tracking",
    "training.trackers.host",
)
HEAVY = {"torch", "matplotlib", "tokenizers", "safetensors", "numpy", "scipy", "openenv", "websockets", "httpx"}
HEAVY |= {"tensorboard", "trackio", "wandb"}

WEB_STACK = {"aiohttp", "fastapi", "flask", "http", "httpx", "openenv", "requests", "socket", "starlette"}
WEB_STACK |= {"urllib", "uvicorn", "websockets"}
REAL_WORLD = {"ctypes", "glob", "importlib", "io", "multiprocessing", "os", "pathlib", "pty", "shutil", "signal"}
REAL_WORLD |= {"subprocess", "sys", "tempfile"}
WIRE_MODULES = {f"toy_terminal_env.{name}" for name in ("client", "server", "wire")}
REAL_WORLD_CALLS = {"__import__", "compile", "eval", "exec", "open"}
# posixpath also has functions that ask the real file system; these only look at the text of a path.
PURE_PATH_FUNCTIONS = {"basename", "dirname", "isabs", "join", "normpath", "split", "splitext"}


def _modules() -> dict[str, Path]:
    """Module name below echo_cli -> source file. The package's own `__init__` has the name ''."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = _modules()


def _imports(path: Path, package: str) -> set[str]:
    """The absolute names a file imports; `from a import b` gives both a and a.b, as b may be a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def _own_imports(name: str) -> set[str]:
    """The modules of echo_cli that module `name` imports."""
    path = MODULES[name]
    package = ".".join(["echo_cli", *path.relative_to(PACKAGE).parent.parts])
    below = (imported.removeprefix("echo_cli.") for imported in _imports(path, package))
    return {imported for imported in below if imported in MODULES and imported}


def test_every_module_has_its_place_in_the_order() -> None:
    unknown = sorted(set(MODULES) - {""} - set(ORDER))
    assert not unknown, f"add {unknown} to ORDER in {Path(__file__).name}, below everything they import"


@pytest.mark.parametrize("name", [name for name in MODULES if name in ORDER])
def test_imports_only_go_down_the_list(name: str) -> None:
    allowed = set(ORDER[: ORDER.index(name)])
    assert _own_imports(name) <= allowed, f"echo_cli.{name} comes before what it imports"


def test_importing_the_package_runs_none_of_its_modules() -> None:
    assert _own_imports("") == set()


def test_no_module_is_a_bag_of_leftovers() -> None:
    names = {path.stem for path in MODULES.values()}
    assert names.isdisjoint({"utils", "util", "common", "base", "helpers", "misc"})


@pytest.mark.parametrize("name", [name for name in LIGHT if name in MODULES])
def test_light_modules_load_no_heavy_library(name: str) -> None:
    code = f"import sys, echo_cli.{name}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    path = os.pathsep.join([str(ROOT), str(TOY_TERMINAL_ENV.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def _toy_files() -> list[Path]:
    return sorted(TOY_TERMINAL_ENV.rglob("*.py"))


def _is_wire(path: Path) -> bool:
    """The OpenEnv server, client and their types, which may import the web stack; the world's logic may not."""
    relative = path.relative_to(TOY_TERMINAL_ENV)
    return relative.parts[0] == "server" or str(relative) in ("client.py", "wire.py")


@pytest.mark.parametrize("path", _toy_files(), ids=lambda path: str(path.relative_to(TOY_TERMINAL_ENV)))
def test_the_toy_world_touches_no_real_file_process_or_network(path: Path) -> None:
    imported = {name.split(".")[0] for name in _imports(path, "toy_terminal_env")}
    assert imported.isdisjoint({"torch", "echo_cli"})
    if _is_wire(path):
        return
    assert imported.isdisjoint(WEB_STACK | REAL_WORLD)
    assert _imports(path, "toy_terminal_env").isdisjoint(WIRE_MODULES)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in REAL_WORLD_CALLS, f"line {node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "posixpath":
            assert node.attr in PURE_PATH_FUNCTIONS, f"line {node.lineno} uses posixpath.{node.attr}"
