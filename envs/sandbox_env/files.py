"""Files of a sandbox and a question about them, generated from a seed with the same bytes everywhere."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

LEVELS = ("INFO", "WARN", "ERROR")
_HOSTS = "alder birch cedar elder hazel linden maple rowan".split()
_ZONES = ("east", "north", "south", "west")
_KEYS = ("backlog", "interval", "limit", "port", "retries", "timeout")
_EVENTS = ("backup done", "cache cleared", "disk nearly full", "login refused", "restart", "slow request")


@dataclass(frozen=True)
class Sandbox:
    """Text of each file by relative path, with a question about the files and its answer."""

    files: Mapping[str, str]
    question: str
    answer: str


def generate(seed: int) -> Sandbox:
    """Generate the sandbox of `seed`: settings, a table of hosts, a log, and a question about one of the three."""
    rng = random.Random(f"sandbox {seed}")
    settings = {key: str(rng.randrange(10, 1000)) for key in _KEYS}
    hosts = {name: (str(rng.randrange(1024, 10_000)), rng.choice(_ZONES)) for name in sorted(rng.sample(_HOSTS, 5))}
    levels = [rng.choice(LEVELS) for _ in range(9)]
    minutes = sorted(rng.sample(range(24 * 60), len(levels)))
    log = [
        f"{minute // 60:02d}:{minute % 60:02d} {level} {rng.choice(_EVENTS)}"
        for minute, level in zip(minutes, levels, strict=True)
    ]
    files = {
        "etc/settings.conf": "".join(f"{key} = {value}\n" for key, value in settings.items()),
        "hosts.csv": "host,port,zone\n" + "".join(f"{name},{port},{zone}\n" for name, (port, zone) in hosts.items()),
        "events.log": "".join(f"{line}\n" for line in log),
    }
    key, host, level = rng.choice(_KEYS), rng.choice(list(hosts)), rng.choice(LEVELS)
    question, answer = rng.choice(
        [
            (f"what is {key} in etc/settings.conf?", settings[key]),
            (f"what is the zone of {host} in hosts.csv?", hosts[host][1]),
            (f"how many {level} lines are in events.log?", str(levels.count(level))),
        ]
    )
    return Sandbox(files, question, answer)
