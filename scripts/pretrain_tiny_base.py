"""Pretrain `tiny-base` on random toy worlds: one command, deterministic, no downloads.

    python scripts/pretrain_tiny_base.py            # writes echo_cli/models/tiny_base/

Demonstrations are scripted episodes in worlds that training and evaluation never use (seeds from
`FIRST_WORLD_SEED` up). The loss is cross-entropy on what the world answered, on the harness's notices, and on what the
searching expert typed; what the explorer typed is not learned, so that the policy acts like somebody with a goal.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch.nn import functional as F

from echo_cli.environment import ToyTerminal
from echo_cli.models.tiny import TinyConfig, TinyModel
from echo_cli.rollout import Limits, play_script
from echo_cli.task import Task
from echo_cli.tokenizer import Tokenizer
from echo_cli.trajectory import Role, Source, Trajectory
from toy_terminal_env.environment import world_and_tasks
from toy_terminal_env.scripted import explorer_actions, explorer_commands, mistaken_action, searching_actions

FIRST_WORLD_SEED = 1_000_000
VOCAB_SIZE = 1024
LIMITS = Limits(action_tokens=32, output_tokens=256, episode_tokens=640)
DEMONSTRATION_TURNS = 8


def demonstration(tokenizer: Tokenizer, world_seed: int, rng: random.Random, explorers: float) -> Trajectory:
    """One scripted episode in the world of `world_seed`: a search for an answer, or a wander with some mistakes."""
    world, tasks = world_and_tasks(world_seed)
    toy_task = rng.choice(list(tasks.values()))
    wandering = rng.random() < explorers
    if wandering:
        actions = explorer_actions(explorer_commands(world, frozenset()), rng.randrange(1, 5), rng)
        actions = [mistaken_action(world, rng) if rng.random() < 0.1 else action for action in actions]
    else:
        actions = searching_actions(world, toy_task, rng)
    task = Task(toy_task.task_id, "train", toy_task.family, {"seed": world_seed, "task_id": toy_task.task_id})
    source: Source = "explorer" if wandering else "expert"
    return play_script(tokenizer, ToyTerminal(DEMONSTRATION_TURNS), task, actions, LIMITS, source)


def learned_roles(trajectory: Trajectory) -> set[Role]:
    """The roles whose tokens have a loss."""
    answers = {Role.ENV_OUTPUT, Role.WARNING}
    return answers if trajectory.source == "explorer" else answers | {Role.ACTION}


def corpus_text(trajectory: Trajectory) -> str:
    return "".join(segment.text for segment in trajectory.segments)


def train_tokenizer() -> Tokenizer:
    """A BPE fitted on the text of worlds below the ones that pretraining uses."""
    byte_level = Tokenizer.train([], 258)
    rng = random.Random("tiny-base-tokenizer")
    texts = [corpus_text(demonstration(byte_level, FIRST_WORLD_SEED - 1 - i, rng, 0.5)) for i in range(1500)]
    return Tokenizer.train(texts, VOCAB_SIZE)


def batch_loss(model: TinyModel, trajectories: list[Trajectory], pad_id: int) -> torch.Tensor:
    """Summed cross-entropy over non-context targets, as one right-padded batch."""
    length = max(len(trajectory) for trajectory in trajectories)
    ids_BT = torch.full((len(trajectories), length), pad_id)
    learned_BT = torch.zeros(len(trajectories), length, dtype=torch.bool)
    for row, trajectory in enumerate(trajectories):
        ids_BT[row, : len(trajectory)] = torch.tensor(trajectory.token_ids)
        roles = learned_roles(trajectory)
        learned_BT[row, : len(trajectory)] = torch.tensor([role in roles for role in trajectory.roles])
    hidden_BTH = model(ids_BT[:, :-1])
    chosen = learned_BT[:, 1:]
    return F.cross_entropy(hidden_BTH[chosen] @ model.lm_head_VH.T, ids_BT[:, 1:][chosen], reduction="sum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--demonstrations", type=int, default=96, help="episodes per step")
    parser.add_argument("--explorers", type=float, default=0.25, help="share of wandering episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "echo_cli/models/tiny_base")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    started = time.perf_counter()
    tokenizer = train_tokenizer()
    config = TinyConfig(vocab_size=tokenizer.vocab_size)
    model = TinyModel(config)
    model.init_weights(generator)
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name and "conv" not in name
    ]
    others = [
        p
        for name, p in model.named_parameters()
        if not (p.ndim == 2 and "embedding" not in name and "conv" not in name)
    ]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    base_rates = [0.02, 3e-3]
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
            targets = sum(demo.count(role) for demo in demos for role in learned_roles(demo))
            total = 0.0
            for i in range(0, len(demos), 16):
                loss = batch_loss(model, demos[i : i + 16], tokenizer.pad_id) / targets
                loss.backward()
                total += loss.item()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if step % 10 == 0 or step == args.steps - 1:
                curve.append({"step": step, "loss": round(total, 4)})
                progress.console.print(f"step {step} loss {total:.4f} {time.perf_counter() - started:.0f} s")
            progress.advance(bar)

    args.output.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, args.output / "model.safetensors")
    (args.output / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (args.output / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
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


if __name__ == "__main__":
    main()
