"""Write a config per environment of the OpenEnv repository, with eight tasks each, for `env check --judge 8`.

.venv/bin/python scripts/openenv_servers/judged_tasks.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SPLITS = ["train"] * 4 + ["validation"] * 2 + ["heldout"] * 2
WORDS = "pen cup lamp desk fork vase coat boot".split()
CAPS = {"max_action_tokens": 32, "max_output_tokens": 256, "max_episode_tokens": 2000}
STARTS = [
    "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1",
    "rnbqkbnr/pppp1ppp/8/4p3/4P3/8/PPPP1PPP/RNBQKBNR w KQkq - 0 2",
    "rnbqkbnr/ppp1pppp/8/3p4/3P4/8/PPP1PPPP/RNBQKBNR w KQkq - 0 2",
    "rnbqkbnr/pp1ppppp/8/2p5/4P3/8/PPPP1PPP/RNBQKBNR w KQkq - 0 2",
    "rnbqkb1r/pppppppp/5n2/8/3P4/8/PPP1PPPP/RNBQKBNR w KQkq - 1 2",
    "rnbqkbnr/pppp1ppp/4p3/8/4P3/8/PPPP1PPP/RNBQKBNR w KQkq - 0 2",
    "rnbqkbnr/ppppp1pp/8/5p2/3P4/8/PPP1PPPP/RNBQKBNR w KQkq - 0 2",
    "rnbqkbnr/pp1ppppp/2p5/8/4P3/8/PPPP1PPP/RNBQKBNR w KQkq - 0 2",
]
"""Positions in which every one of the explorers' first moves is legal, in FEN."""


def tasks(resets: Sequence[dict[str, Any]], *actions: str) -> dict[str, Any]:
    """Return the `tasks` section of eight tasks; `actions` solve each of them, where they are given."""
    solved = {"actions": list(actions)} if actions else {}
    items = [{"reset": reset, "split": split, **solved} for reset, split in zip(resets, SPLITS, strict=True)]
    return {"items": items}


def shown(path: str, **rule: Any) -> dict[str, Any]:
    return {"path": path, "channel": path.rpartition(".")[2], "label": f"{path.rpartition('.')[2]}: {{text}}\n", **rule}


def of_presets(seeds: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the environments that have a preset."""
    yield "echo", {"preset": "echo", "tasks": tasks(seeds)}
    yield "coding", {"preset": "coding", "tasks": tasks(seeds)}
    exit_of_maze = "3 3 1 1 2 2 1 1 3 3 3 3 3 1 1 1 3 3".split()
    yield "maze", {"preset": "maze", "tasks": tasks(seeds, *exit_of_maze)}
    tower = [f"[{move}]" for move in ("A C", "A B", "C B", "A C", "B A", "B C", "A C")]
    yield "textarena", {"preset": "textarena", "tasks": tasks(seeds, *tower)}
    contexts = [f"The {word} costs {7 * n + 3}.\nThe {WORDS[n - 3]} costs {5 * n + 4}." for n, word in enumerate(WORDS)]
    items = [
        {
            "reset": {
                "context": context,
                "task_prompt": f"What does the {word} cost?",
                "expected_answer": str(7 * n + 3),
            },
            "split": split,
            "actions": ["print(context)", f"print('FINAL({7 * n + 3})')"],
        }
        for n, (word, context, split) in enumerate(zip(WORDS, contexts, SPLITS, strict=True))
    ]
    yield "repl", {"preset": "repl", "tasks": {"items": items}}


def of_own_rules(seeds: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the environments whose actions and observations are described here."""
    moves = "UP DOWN LEFT RIGHT".split()
    yield (
        "grid_world",
        {
            "tasks": tasks(seeds, *["DOWN"] * 4, *["RIGHT"] * 4),
            "action": {"template": {"action": "{text}"}},
            "observation": [shown("x"), shown("y"), shown("message")],
            "explorer": moves,
            "max_turns": 10,
        },
    )
    yield (
        "connect4",
        {
            "tasks": tasks(seeds, *"0101010"),  # the policy moves for both sides
            "action": {"template": {"column": "{text:int}"}},
            "observation": [shown("board"), shown("legal_actions")],
            "explorer": list("0123456"),
            "max_turns": 8,
        },
    )
    yield (
        "reasoning_gym",
        {
            "tasks": tasks([{"dataset_name": "chain_sum", "seed": seed, "size": 1} for seed in range(8)]),
            "action": {"template": {"answer": "{text}"}},
            "observation": [shown("question", on="reset"), shown("correct_answer", on="step")],
            "explorer": ["100", "500", "1000"],
            "max_turns": 1,
        },
    )
    yield (
        "chess",
        {
            "tasks": tasks([{"fen": fen} for fen in STARTS]),
            "action": {"template": {"move": "{text}"}},
            "observation": [shown("fen")],
            "explorer": "g1f3 b1c3 h2h3 a2a3 g2g3 b2b3 g8f6 b8c6 h7h6 a7a6".split(),
            "max_turns": 5,
        },
    )
    yield (
        "snake",
        {
            "tasks": tasks(seeds),
            "action": {"template": {"action": "{text:int}"}},
            "observation": [shown("grid"), shown("episode_score")],
            "explorer": list("012"),
            "max_turns": 5,
        },
    )


def main(folder: Path) -> None:
    """Write the configs."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [{"seed": seed} for seed in range(8)]
    for name, section in [*of_presets(seeds), *of_own_rules(seeds)]:
        environment = {"url": "http://127.0.0.1:8000", "reward": {"none": "zero"}, **section}
        if "preset" in section:
            del environment["reward"]
        caps = {} if "preset" in section else {"rollout": CAPS}
        (folder / f"{name}.yaml").write_text(json.dumps({"environment": environment, **caps}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
