"""The model card of `tiny-machine`: how it was trained, what it can do, and what it cannot."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from echo_cli.config.model import ModelConfig
from echo_cli.config.schema import Config
from echo_cli.environments.toy import ToyWorlds
from echo_cli.evaluation.evaluator import rollout_tasks
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.models.tiny import load_model
from toy_terminal_env.machine import SEEDS

MEASURED = SEEDS["evaluation"][-14:-8]
"""Machines of the model card's pass@1; no training, no claim and no probe uses them."""
TURNS = 2


def pass_by_family(folder: Path) -> dict[str, float]:
    """Measure pass@1 by task family on every task of six machines, one rollout per task."""
    config = Config(model=ModelConfig(path=str(folder)))
    policy, _ = build_policy(config)
    worlds = ToyWorlds(MEASURED, (), TURNS, kind="machine")
    tasks = [*worlds.tasks.train, *worlds.tasks.validation, *worlds.tasks.heldout]
    rewards: dict[str, list[float]] = defaultdict(list)
    for task, played in zip(tasks, rollout_tasks(policy, worlds, tasks, 1, config, seed=0), strict=True):
        rewards[task.family].append(played.reward or 0.0)
    return {family: sum(values) / len(values) for family, values in rewards.items()}


CARD = """# tiny-machine

A decoder-only transformer of {parameters:,} parameters ({hidden} wide, {layers} layers, {heads} heads; RoPE, LayerNorm,
QK-norm, ReLU, width-3 causal convolution) with a byte-level BPE of {vocab_size} entries. It serves as the pretrained
model of echo-cli's runs on machines: it can act there, but does not know the machine of the run.

- **Data**: {demonstrations_per_step} scripted episodes per step, in worlds that training and evaluation never use:

| share | worlds | the actor | learned |
|---|---|---|---|
| {files:.1%} | of files, each met once | searches, answers without looking, or explores | actions, outputs, notices |
| {fresh:.1%} | machines, each met once | looks in a random file, searches, or explores | actions, outputs, notices |
| {shown:.1%} | eight *home* machines | goes to the right file, searches, or explores | exploring: outputs; else all |
| {read:.1%} | eight other home machines | explores only | outputs |

- **Home machines recur**, so that the base learns facts and, on half of these machines, sees actions that use them.
  What it has only read about the other half, it then uses too. This is the part of a pretrained language model that the
  toy needs: facts learned as text can be used in answers only if pretraining had both forms for other entities
  (Allen-Zhu and Li, *Physics of Language Models 3.1*, arXiv 2309.14316). Evaluation machines share no service name with
  home machines or with machines met once.
- **Training**: {steps} steps; Muon for matrices (learning rate 0.02), AdamW for the rest (3e-3); weight decay 0.1; a
  constant rate, then linear decay over {decay_steps} steps once the probe of machines only read is at {enough:.0%};
  {seconds} s with one thread beside other work, torch {torch}. Rebuild with `python scripts/pretrain_tiny_machine.py`.
- **Probe**: share of questions after which the right file is the most probable of the 16, by what the base knows of the
  machine. Loss in nats per learned token. `pretraining.json` has every row.

| step | loss | acting shown | only read | unknown |
|---|---|---|---|---|
{curve}

- **Can**: follow the format, choose a command that a question asks for, search for a service, copy an answer from an
  output. pass@1 on six machines used for nothing else, {turns} lines an episode, one rollout per task at temperature 1:

| family | {families} |
|---|{family_rule}|
| pass@1 | {family_rates} |

- **Beside `tiny-base`**, in worlds of files (six worlds, one rollout per task): better at finding keys and cells, worse
  at counting matches and at times (pass@1 of `count` 0.26 against 0.36, `file_count` 0.39 against 0.44, `match_time`
  0.13 against 0.26), so that runs in these worlds keep `tiny-base`. Trained on machines alone for 750 steps, the probe
  of machines only read ends at 0.75.
- **Cannot**: know where anything is on a new machine, or do anything outside the toy terminal. It is not a
  general-purpose language model.
- **Licence**: Apache-2.0, like the project. Trained only on text that the toy worlds generate.
"""


def write_card(folder: Path, *, decay_steps: int, enough: float) -> None:
    """Write the model card, README.md, beside the weights: training, measured abilities and limits."""
    record = json.loads((folder / "pretraining.json").read_text())
    model, _ = load_model(folder)
    rates = pass_by_family(folder)
    points = [point for point in record["curve"] if point["step"] % 300 == 0 or point is record["curve"][-1]]
    text = CARD.format(
        **{name: value for name, value in record.items() if name != "curve"},
        **record["shares"],
        **model.config.to_json(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        turns=TURNS,
        decay_steps=decay_steps,
        enough=enough,
        curve="\n".join(
            f"| {point['step']} | {point['loss']:.2f} | {point['A']:.2f} | {point['B']:.2f} | {point['unknown']:.2f} |"
            for point in points
        ),
        families=" | ".join(rates),
        family_rule="---|" * (len(rates) - 1) + "---",
        family_rates=" | ".join(f"{rate:.2f}" for rate in rates.values()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
