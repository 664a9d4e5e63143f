"""Pretrain `tiny-machine` on machines: one command, deterministic, no downloads.

    python scripts/pretrain_tiny_machine.py         # writes echo_cli/models/tiny_machine/

Demonstrations are scripted episodes on machines that training and evaluation never use
(tiny_machine/demonstrations.py). A probe tells when the base uses what it has only read; then the learning rate falls.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pretrain_tiny_base import VOCAB_SIZE, batch_loss, corpus_text, optimizers_of
from tiny_machine.card import write_card
from tiny_machine.demonstrations import SHARES, WITHOUT_HOME, demonstrate
from tiny_machine.probe import probe

from echo_cli.models.tiny import TinyConfig, TinyModel, save_model
from echo_cli.models.tokenizer import Tokenizer

PROBE_EVERY, ENOUGH = 50, 0.5
"""Steps between probes, and the share of group B from which the learning rate may begin to fall."""
LEAST_STEPS, DECAY_STEPS = 1200, 300
"""Least number of steps at a constant learning rate, and steps over which it falls."""

SHIPPED = Path(__file__).parents[1] / "echo_cli/models/tiny_machine"
"""Folder of the base that comes with the package."""


def train_tokenizer() -> Tokenizer:
    """Train a BPE on the text of 1,500 demonstrations, whatever the base is trained on."""
    byte_level = Tokenizer.train([], 258)
    rng = random.Random("tiny-base-tokenizer")
    texts = [corpus_text(demonstrate(byte_level, number, rng).trajectory) for number in range(1500)]
    return Tokenizer.train(texts, VOCAB_SIZE)


def shares_of(args: argparse.Namespace) -> Mapping[str, float]:
    return WITHOUT_HOME if args.without_home else SHARES


def pretrain(model: TinyModel, tokenizer: Tokenizer, args: argparse.Namespace) -> dict[str, Any]:
    """Train `model` until it uses what it has only read; return the curve of its loss and its probes.

    The learning rate is constant for `LEAST_STEPS` and until a probe of group B reaches `ENOUGH`, at most until
    `DECAY_STEPS` before `args.steps`; then it falls linearly to zero.
    """
    started = time.perf_counter()
    optimizers = optimizers_of(model)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    curve: list[dict[str, float]] = []
    rng = random.Random(f"tiny-base-{args.seed}")
    shares, end = shares_of(args), args.steps
    for step in count():
        if step == end:
            break
        scale = min(1.0, (end - step) / DECAY_STEPS)
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
        demos = [
            demonstrate(tokenizer, step * args.demonstrations + number, rng, shares)
            for number in range(args.demonstrations)
        ]
        demos.sort(key=lambda demo: len(demo.trajectory))
        targets = sum(demo.trajectory.count(role) for demo in demos for role in demo.learned)
        total = 0.0
        for i in range(0, len(demos), 16):
            batch = demos[i : i + 16]
            trajectories, learned = [demo.trajectory for demo in batch], [demo.learned for demo in batch]
            loss = batch_loss(model, trajectories, learned, tokenizer.pad_id) / targets
            loss.backward()
            total += loss.item()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if done % PROBE_EVERY == 0 or done == end:
            found = probe(model, tokenizer)
            curve.append({"step": done, "loss": round(total, 4), **found})
            right = ", ".join(f"{group} {share:.2f}" for group, share in found.items())
            print(f"step {done} loss {total:.4f} right file: {right} {time.perf_counter() - started:.0f} s", flush=True)
            if done >= LEAST_STEPS and (args.without_home or found["B"] >= ENOUGH):
                end = min(end, done + DECAY_STEPS)
    return {"steps": end, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1800, help="most steps")
    parser.add_argument("--demonstrations", type=int, default=96, help="episodes per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=SHIPPED)
    parser.add_argument("--without-home", action="store_true", help="no machine recurs: a control, with --output")
    parser.add_argument("--card", action="store_true", help="only measure the model and rewrite its card")
    args = parser.parse_args()
    if args.without_home and args.output == SHIPPED:
        parser.error("--without-home makes a control, not the shipped base: name its folder by --output")
    if args.card:
        write_card(args.output, decay_steps=DECAY_STEPS, enough=ENOUGH)
        return

    torch.set_num_threads(1)  # another number of threads adds in another order: other weights
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    started = time.perf_counter()
    tokenizer = train_tokenizer()
    model = TinyModel(TinyConfig(vocab_size=tokenizer.vocab_size))
    model.init_weights(generator)
    found = pretrain(model, tokenizer, args)
    args.output.mkdir(parents=True, exist_ok=True)
    save_model(model, tokenizer, args.output)
    record = {
        "demonstrations_per_step": args.demonstrations,
        "shares": dict(shares_of(args)),
        "seed": args.seed,
        "seconds": round(time.perf_counter() - started),
        "torch": torch.__version__,
        **found,
    }
    (args.output / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    if not args.without_home:  # the card is that of a base which knows home machines
        write_card(args.output, decay_steps=DECAY_STEPS, enough=ENOUGH)


if __name__ == "__main__":
    main()
