"""Pretrain `tiny-base` on random toy worlds: one command, deterministic, no downloads.

    python scripts/pretrain_tiny_base.py            # writes echo_cli/models/tiny_base/

Demonstrations are scripted episodes in worlds that training and evaluation never use (seeds from
`FIRST_WORLD_SEED` up). The loss is the cross-entropy of all tokens except the context: actions, observations and
the harness's notices. The actor searches for the answer as a newcomer, answers without looking, or only explores, so
that reinforcement learning still has a behaviour to learn that applies to every task.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from rich.progress import Progress
from torch.nn import functional as F

from echo_cli.config.model import ModelConfig
from echo_cli.config.schema import Config
from echo_cli.environments.tasks import Task
from echo_cli.environments.toy import ToyWorlds
from echo_cli.evaluation.evaluator import rollout_tasks
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tiny import TinyConfig, TinyModel, load_model, save_model
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.trajectory import Role, Trajectory
from toy_terminal_env.environment import world_and_tasks
from toy_terminal_env.scripted import (
    explorer_actions,
    explorer_commands,
    hasty_actions,
    mistaken_action,
    searching_actions,
)

FIRST_WORLD_SEED = 1_000_000
FIRST_MEASURED_SEED = 900_000
VOCAB_SIZE = 1024
LIMITS = EpisodeLimits(action_tokens=32, output_tokens=256, episode_tokens=640)
DEMONSTRATION_TURNS = 12
HASTY_SHARE = 0.5
LEARNED = (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING)


@lru_cache(maxsize=64)
def commands_of(world_seed: int) -> Mapping[str, Sequence[str]]:
    """Return an explorer's commands in the world of `world_seed`, by kind."""
    return explorer_commands(world_and_tasks(world_seed)[0], frozenset())


def demonstration(tokenizer: Tokenizer, world_seed: int, rng: random.Random, explorers: float) -> Trajectory:
    """Play a scripted episode in the world of `world_seed`: a search, a hasty answer, or exploration with mistakes."""
    world, tasks = world_and_tasks(world_seed)
    toy_task = rng.choice(list(tasks.values()))
    if rng.random() < explorers:
        actions = explorer_actions(commands_of(world_seed), rng.randrange(1, 5), rng)
        actions = [mistaken_action(world, rng) if rng.random() < 0.1 else action for action in actions]
    elif rng.random() < HASTY_SHARE:
        actions = hasty_actions(tasks.values(), toy_task, rng)
    else:
        actions = searching_actions(world, toy_task, rng)
    arguments = {"seed": world_seed, "task_id": toy_task.task_id, "max_turns": DEMONSTRATION_TURNS}
    task = Task(toy_task.task_id, "train", toy_task.family, arguments)
    return play_scripts(
        PlainRenderer(tokenizer), ToyWorlds((), (), DEMONSTRATION_TURNS), [(task, actions)], LIMITS, "expert"
    )[0]


def corpus_text(trajectory: Trajectory) -> str:
    return "".join(segment.text for segment in trajectory.segments)


def train_tokenizer() -> Tokenizer:
    """Train a BPE on the text of worlds with seeds below the pretraining seeds."""
    byte_level = Tokenizer.train([], 258)
    rng = random.Random("tiny-base-tokenizer")
    texts = [corpus_text(demonstration(byte_level, FIRST_WORLD_SEED - 1 - i, rng, 0.5)) for i in range(1500)]
    return Tokenizer.train(texts, VOCAB_SIZE)


def batch_loss(
    model: TinyModel, trajectories: Sequence[Trajectory], learned: Sequence[Collection[Role]], pad_id: int
) -> torch.Tensor:
    """Return the cross-entropy summed over the targets, nats, computed as one right-padded batch.

    Args:
        learned: roles of each trajectory's targets.
    """
    length = max(len(trajectory) for trajectory in trajectories)
    ids_BT = torch.full((len(trajectories), length), pad_id)
    learned_BT = torch.zeros(len(trajectories), length, dtype=torch.bool)
    for row, trajectory in enumerate(trajectories):
        ids_BT[row, : len(trajectory)] = torch.tensor(trajectory.token_ids)
        learned_BT[row, : len(trajectory)] = torch.tensor([role in learned[row] for role in trajectory.roles])
    hidden_BTH = model(ids_BT[:, :-1])
    chosen = learned_BT[:, 1:]
    return F.cross_entropy(hidden_BTH[chosen] @ model.lm_head_VH.T, ids_BT[:, 1:][chosen], reduction="sum")


def pass_by_family(folder: Path) -> dict[str, float]:
    """Measure pass@1 by task family on every task of six worlds that nothing else uses, one rollout per task."""
    config = Config(model=ModelConfig(path=str(folder)))
    policy, _ = build_policy(config)
    toy = config.environment.toy_worlds
    assert toy is not None
    worlds = ToyWorlds(range(FIRST_MEASURED_SEED, FIRST_MEASURED_SEED + 6), (), toy.max_turns)
    tasks = [*worlds.tasks.train, *worlds.tasks.validation, *worlds.tasks.heldout]
    rewards: dict[str, list[float]] = defaultdict(list)
    for task, played in zip(tasks, rollout_tasks(policy, worlds, tasks, 1, config, seed=0), strict=True):
        rewards[task.family].append(played.reward or 0.0)
    return {family: sum(values) / len(values) for family, values in sorted(rewards.items())}


CARD = """# tiny-base

A decoder-only transformer of {parameters:,} parameters ({hidden} wide, {layers} layers, {heads} heads; RoPE, LayerNorm,
QK-norm, ReLU, width-3 causal convolution) with a byte-level BPE of {vocab_size} entries. It serves as the pretrained
model of echo-cli's runs in toy worlds of kind `files`: it can act there, but does not know the world of the run.

- **Data**: scripted episodes in random toy worlds with seeds from {first_world_seed:,} up, {demonstrations_per_step}
  per step. In {explorer_share:.0%} of them the actor explores without a goal; in half of the others it searches for the
  answer, and in the other half it answers without looking. Training and evaluation use none of these worlds.
- **Training**: {steps} steps; Muon for matrices (learning rate 0.02), AdamW for the rest (3e-3); weight decay 0.1; 60%
  of the steps at a constant rate, then linear decay; {seconds} s on 2 cores with torch {torch}. Rebuild with
  `python scripts/pretrain_tiny_base.py`.
- **Loss** (nats per token on actions, outputs and notices; `pretraining.json` has every tenth step):

| step | {curve_steps} |
|---|{curve_rule}|
| loss | {curve_losses} |

- **Can**: follow the format, choose the command that a question asks for, copy an answer from an output, list a folder
  and try its files one by one. pass@1 in six worlds used for nothing else, one rollout per task at temperature 1:

| family | {families} |
|---|{family_rule}|
| pass@1 | {family_rates} |

- **Cannot**: know where anything is in a new world, reliably look before it answers, reliably pick the right column of
  a table, count, or do anything outside the toy terminal. It is not a general-purpose language model.
- **Licence**: Apache-2.0, like the project. Trained only on text that the toy worlds generate.
"""


def write_card(folder: Path) -> None:
    """Write the model card, README.md, beside the weights: training, measured abilities and limits."""
    record = json.loads((folder / "pretraining.json").read_text())
    model, _ = load_model(folder)
    rates = pass_by_family(folder)
    curve = [point for point in record["curve"] if point["step"] % 50 == 0] + [record["curve"][-1]]
    text = CARD.format(
        **record,
        **model.config.to_json(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        curve_steps=" | ".join(str(point["step"]) for point in curve),
        curve_rule="---|" * (len(curve) - 1) + "---",
        curve_losses=" | ".join(f"{point['loss']:.2f}" for point in curve),
        families=" | ".join(rates),
        family_rule="---|" * (len(rates) - 1) + "---",
        family_rates=" | ".join(f"{rate:.2f}" for rate in rates.values()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def optimizers_of(model: TinyModel) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for all other parameters."""
    named = dict(model.named_parameters())
    matrices = [parameter for name, parameter in named.items() if name.startswith("blocks.") and "conv" not in name]
    others = [parameter for name, parameter in named.items() if not name.startswith("blocks.") or "conv" in name]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]


def pretrain(model: TinyModel, tokenizer: Tokenizer, args: argparse.Namespace) -> list[dict[str, float]]:
    """Train `model` and return its loss at every tenth step."""
    started = time.perf_counter()
    optimizers = optimizers_of(model)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    curve: list[dict[str, float]] = []
    rng = random.Random(f"tiny-base-{args.seed}")
    with Progress() as progress:
        bar = progress.add_task("pretraining", total=args.steps)
        for step in range(args.steps):
            # 60 % flat, then linear to zero.
            scale = min(1.0, (args.steps - step) / (0.4 * args.steps))
            for optimizer, rate in zip(optimizers, base_rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * scale
            worlds = [FIRST_WORLD_SEED + (args.seed * args.steps + step) * 24 + i for i in range(24)]
            demos = [
                demonstration(tokenizer, rng.choice(worlds), rng, args.explorers) for _ in range(args.demonstrations)
            ]
            demos.sort(key=len)
            targets = sum(demo.count(role) for demo in demos for role in LEARNED)
            total = 0.0
            for i in range(0, len(demos), 16):
                batch = demos[i : i + 16]
                loss = batch_loss(model, batch, [LEARNED] * len(batch), tokenizer.pad_id) / targets
                loss.backward()
                total += loss.item()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if step % 10 == 0 or step == args.steps - 1:
                curve.append({"step": step, "loss": round(total, 4)})
                progress.console.print(f"step {step} loss {total:.4f} {time.perf_counter() - started:.0f} s")
            progress.advance(bar)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--demonstrations", type=int, default=96, help="episodes per step")
    parser.add_argument("--explorers", type=float, default=0.2, help="share of exploring episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "echo_cli/models/tiny_base")
    parser.add_argument("--card", action="store_true", help="only measure the model and rewrite its card")
    args = parser.parse_args()
    if args.card:
        write_card(args.output)
        return

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    started = time.perf_counter()
    tokenizer = train_tokenizer()
    model = TinyModel(TinyConfig(vocab_size=tokenizer.vocab_size))
    model.init_weights(generator)
    curve = pretrain(model, tokenizer, args)
    args.output.mkdir(parents=True, exist_ok=True)
    save_model(model, tokenizer, args.output)
    record = {
        "steps": args.steps,
        "demonstrations_per_step": args.demonstrations,
        "explorer_share": args.explorers,
        "seed": args.seed,
        "first_world_seed": FIRST_WORLD_SEED,
        "seconds": round(time.perf_counter() - started),
        "torch": torch.__version__,
        "curve": curve,
    }
    (args.output / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    write_card(args.output)


if __name__ == "__main__":
    main()
