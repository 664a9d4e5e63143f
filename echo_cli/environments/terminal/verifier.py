"""The reward of a task's tests: `reward.txt` or `reward.json`, else their exit status."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from echo_cli.environments.faults import fault_line

TEXT, JSON = "reward.txt", "reward.json"
_MOST_BYTES = 2**16
_NOT_RUN = (126, 127)
"""Exit statuses of bash for a program that cannot be run or found."""


class VerifierFault(Exception):
    """Tests that gave no reward; the text is for the user."""


def reward_of(logs: Path, status: int, task: str, said: str = "") -> float:
    """Return the reward that the tests wrote to the folder `logs`: `reward.txt` before `reward.json`, as in Harbor.

    Without either file, the exit status 0 gives 1 and another 0.

    Args:
        said: last line that the tests printed.

    Raises:
        VerifierFault: the files hold no finite number, or there is no file and bash could not run the tests.
    """
    for name in (TEXT, JSON):
        if (text := _read(logs / name)) is not None:
            return parse_reward(name, text, task)
    return status_reward(status, task, said)


def status_reward(status: int, task: str, said: str = "") -> float:
    """Return the reward of tests that wrote none: 1 for the exit status 0, else 0.

    Raises:
        VerifierFault: bash could not run the tests, or a signal killed them.
    """
    if status in _NOT_RUN or status < 0 or status > 128:
        raise VerifierFault(fault_line(f"the tests of {task} did not run: exit status {status}: {said or 'no output'}"))
    return float(status == 0)


def parse_reward(name: str, text: str, task: str) -> float:
    """Return the reward in the text of a reward file.

    JSON is a number or an object; its reward is `reward`, or its only number.

    Raises:
        VerifierFault: the text holds no finite number, or an object holds several and none is called `reward`.
    """
    try:
        value: Any = json.loads(text) if name == JSON else float(text.strip())
    except (ValueError, RecursionError):
        raise VerifierFault(fault_line(f"the tests of {task} wrote no number to {name}: {text}")) from None
    if isinstance(value, dict):
        numbers = [key for key, each in value.items() if isinstance(each, int | float)]
        if "reward" not in value and len(numbers) != 1:
            raise VerifierFault(fault_line(f"{name} of {task} has no key reward, and {len(numbers)} numbers"))
        value = value["reward"] if "reward" in value else value[numbers[0]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise VerifierFault(fault_line(f"the tests of {task} wrote no number to {name}: {text}"))
    return float(value)


def _read(path: Path) -> str | None:
    """Return the text of a file; None if it does not exist. A link, which may lead out of the sandbox, is refused.

    Raises:
        VerifierFault: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise VerifierFault(f"{path.name} is not a file that can be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_MOST_BYTES).decode(errors="replace")
