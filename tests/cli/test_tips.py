"""Natural mistakes of a newcomer: each is one line, exit code 2, and a tip that names what was meant."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.config.loader import configs_folder

ROOT = Path(__file__).resolve().parents[2]
LAMBDA = "did you mean 'objective.world_model_coeff' (λ; train --lambda sets it)?"
AGAIN = "this trains it again: echo-cli train --steps 60 --seed 0"

MISTAKES = {
    # keys of the config
    "train objective.lamda=0.5": LAMBDA,
    "train objective.lambda=0.5": LAMBDA,
    "train lambda=0.5": LAMBDA,
    "train coeff=0.5": LAMBDA,
    "train world_model_coeff=1": LAMBDA,
    "train lr=1e-3": "did you mean 'optim.lr'?",
    "train objective.lr=1e-3": "did you mean 'optim.lr'?",
    "train learning_rate=1e-3": "did you mean 'optim.lr'?",
    "train beta=0.1": "did you mean 'objective.kl_coeff'?",
    "train objective.kl_coef=0.1": "did you mean 'objective.kl_coeff'?",
    "train batch_size=8": "did you mean 'rollout.tasks_per_step'?",
    "train num_generations=8": "did you mean 'rollout.group_size'?",
    "train temperature=1": "did you mean 'rollout.temperature'?",
    "train max_new_tokens=8": "did you mean 'rollout.max_action_tokens'?",
    "train epochs=3": "did you mean 'steps'?",
    "train step=3": "did you mean 'steps'?",
    "train model.name=Qwen/Qwen3-0.6B": "did you mean 'model.path'?",
    "train model=Qwen/Qwen3-0.6B": "it is a section: set its keys, such as model.path",
    "train model.lora=8": "it is a section: set its keys, such as model.lora.rank",
    "train lora_rank=8": "did you mean 'model.lora.rank'?",
    "train env.url=http://x": "did you mean 'environment'?",
    "train environment=http://x": "it is a section: set its keys, such as environment.url",
    "train max_turns=8": "did you mean 'environment.max_turns' or",
    "train save_every=5": "did you mean 'checkpoint.every'?",
    "train eval_every=5": "did you mean 'evaluation.every'?",
    "train evaluation.evry=5": "did you mean 'evaluation.every'?",
    "train optim.momentum=0.9": "keys of optim: lr, betas, eps,",
    "train wandb=true": "did you mean 'track'?",
    # values of the config
    "train preset=papr": "did you mean 'paper'?",
    "train objective.advantage=grpo": "did you mean 'group_norm'?",
    "train objective.schedule=sine": "did you mean 'cosine'?",
    "train --device gpu": "did you mean 'cuda'?",
    "train --device cuda:0": "did you mean 'cuda'?",
    "train track=tensorbord": "did you mean 'tensorboard'?",
    "train --seed 0,1": "for several seeds: echo-cli sweep-lambda 0 1 --seeds 0 1",
    "train --lambda 0,1": "separate values with spaces: echo-cli sweep-lambda 0 1",
    "train --lambda 0,5": "; a decimal point is a point: 0.5",
    # words and options
    "train toy-grpo": "did you mean --config toy-grpo?",
    "train toy-gpro": "did you mean --config toy-grpo?",
    "train sandbox.yaml": "did you mean --config sandbox?",
    "train outputs/toy-reference": "to continue that run: --resume --output-dir outputs --run-name toy-reference",
    "train optim.lr 1e-3": "write optim.lr=VALUE, without spaces around =",
    "train resume": "did you mean --resume?",
    "train --lr 1e-3": "did you mean optim.lr=…?",
    "train --optim.lr 1e-3": "write optim.lr=… without --",
    "train --temperature 1": "write rollout.temperature=… without --",
    "train --model Qwen/Qwen3-0.6B": "write model.path=… without --",
    "train --lamda 1": "did you mean --lambda?",
    "train --epochs 3": "did you mean --steps?",
    "train --gpu": "did you mean --device cuda?",
    "train --seeds 0 1": "train takes one --seed; for several: echo-cli sweep-lambda 0 1 --seeds 0 1",
    "train --output x": "did you mean --output-dir?",
    "bench toy-grpo": "did you mean --config toy-grpo?",
    "--config toy": "write options after a command, such as echo-cli train --steps 60",
    # configs
    "train --config toy-grpo.yaml": "did you mean 'toy-grpo'?",
    "train --config qwen3": "did you mean 'qwen3-0.6b'?",
    "train --config outputs/toy-reference": "did you mean outputs/toy-reference/config.yaml?",
    "train --config maze": "environment: {preset: maze, url: URL, tasks: …}",
    "train --config environments/maze.yaml": "environment: {preset: maze, url: URL, tasks: …}",
    f"train --config {shlex.quote(str(configs_folder()))}/environments/maze.yaml": "{preset: maze, url: URL",
    "env check textarena": "environment: {preset: textarena, url: URL, tasks: …}",
    "env check sandbx": "did you mean 'sandbox'?",
    # commands
    "sweep 0 1": "did you mean 'sweep-lambda'?",
    "eval outputs/toy-reference": "did you mean 'eval-heldout'?",
    "resume outputs/toy-reference": "did you mean 'train --resume'?",
    "check sandbox": "did you mean 'env check'?",
    "env sandbox": "did you mean 'echo-cli env check sandbox'?",
    "import openai x.jsonl": "did you mean 'traces import'?",
    "compare a b": "did you mean 'eval-heldout --compare RUN_A RUN_B'?",
    "pool outputs/pool": "commands of pool: build, show",
    "toy-grpo": "did you mean 'train --config toy-grpo'?",
    "version": "did you mean '--version'?",
    # sweeps
    "sweep-lambda 0,0.5": "separate values with spaces: echo-cli sweep-lambda 0 0.5",
    "sweep-lambda --lambda 0 1": "write the values without an option: echo-cli sweep-lambda 0 1",
    "sweep-lambda -- -1 --dry-run": "write --dry-run before the first --",
    "sweep-lambda 0 1 --resume": "repeat the command without it: finished runs are kept, stopped runs continue",
    "sweep-lambda 0 1 --seeds -1": "give integers from 0",
    "sweep-lambda toy": "did you mean --config toy?",
    "sweep-lambda 0 --parallel 2": "did you mean --jobs?",
    # runs
    "eval-heldout toy-reference": "did you mean outputs/toy-reference?",
    "eval-heldout outputs/nope": "runs there: outputs/toy-reference",
    "eval-heldout outputs": "runs there: outputs/toy-reference",
    "eval-heldout outputs/toy-reference": AGAIN,
    "eval-heldout outputs/toy-reference steps=3": "omit it: a run keeps its own config; to choose the device: --device",
    "eval-heldout a b": "--compare a b",
    "eval-heldout --compare outputs/toy-reference": "write --compare RUN_A RUN_B",
    "eval-heldout outputs/sweep-toy": "report is outputs/sweep-toy/report.html, and its runs are outputs/sweep-toy/a",
    "plot outputs/sweep-toy": "outputs/sweep-toy/report.html",
    "plot outputs/toy-reference/metrics.jsonl": "outputs/toy-reference?",
    "plot outputs/nope": "outputs/toy-reference",
    "report outputs/sweep-toy": "outputs/sweep-toy/report.html",
    "inspect outputs/toy-reference --step 3": AGAIN,
    "traces export outputs/toy-reference --to openai -o x.jsonl": AGAIN,
    "dream outputs/toy-reference": AGAIN,
    # words that are missing
    "export outputs/toy-reference": "for example: echo-cli export outputs/toy-seed0 -o outputs/model",
    "traces import": "for example: echo-cli traces import openai chats.jsonl -o",
    "env check": "for example: echo-cli env check sandbox",
    "plot": "for example: echo-cli plot ",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with outputs/: a finished run without checkpoints, and a sweep of one run."""
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(ROOT / "outputs" / "toy-reference", folder / "outputs" / "toy-reference")
    cell = folder / "outputs" / "sweep-toy" / "a"
    cell.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(ROOT / "outputs" / "toy-reference" / name, cell)
    for name in ("sweep.json", "report.html"):
        (cell.parent / name).touch()
    return folder


@pytest.mark.parametrize("line", MISTAKES)
def test_a_natural_mistake_gets_the_tip_that_helps(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert main(shlex.split(line)) == 2
    captured = capsys.readouterr()
    message, tip = error_of(captured.err)
    assert captured.out == "" and message
    assert MISTAKES[line] in tip
    assert str(folder) not in message + tip  # paths as they were typed
    assert sorted(folder.rglob("*")) == before


def test_an_unknown_config_is_answered_with_every_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "xyz"]) == 2
    listed = error_of(capsys.readouterr().err)[1].removeprefix("shipped configs: ").split(", ")
    assert listed == sorted(path.stem for path in configs_folder().glob("*.yaml"))
    assert "qwen3-0.6b" in listed


@pytest.mark.parametrize(
    "command", ["train", "sweep-lambda", "eval-heldout", "inspect", "bench", "pool build", "env check", "traces export"]
)
def test_help_of_a_command_that_takes_a_config_lists_the_shipped_ones(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    listed = " ".join(capsys.readouterr().out.partition("Shipped configs: ")[2].split()).split(", ")
    assert listed == sorted(path.stem for path in configs_folder().glob("*.yaml"))


def test_a_run_that_kept_no_episode_is_told_why_its_export_is_empty(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(folder / "outputs" / "toy-reference" / "metrics.jsonl", run)
    config = (folder / "outputs" / "toy-reference" / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"kept_trajectories: \d+", "kept_trajectories: 0", config))
    (run / "trajectories.jsonl").touch()
    assert main(["traces", "export", str(run), "--to", "openai", "-o", str(tmp_path / "x.jsonl")]) == 2
    assert "kept_trajectories is 0" in error_of(capsys.readouterr().err)[1]
