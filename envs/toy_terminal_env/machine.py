"""A machine: a toy world of sixteen services whose config files are called the same on every machine.

Which service is configured in which file is the machine's secret. A policy that knows it answers a question in one
command; one that does not has to search, and a cap on the lines of an episode may not leave the turns for that.

Machines have three disjoint uses, each with its own seeds and service names: `evaluation` machines are trained and
measured on, `home` machines recur in the pretraining of `tiny-machine`, and `fresh` ones occur there once. No two
evaluation or home machines have a service name in common.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Literal

from toy_terminal_env.world import NUMBER_KEYS, REGISTRY, WORD_KEYS, WORDS, World, random_number

Use = Literal["evaluation", "home", "fresh"]
STEMS = "web db cache mail auth queue proxy cron build search audit backup metrics sync edge batch".split()
SETTINGS_PER_FILE = (5, 7)
SEEDS: Mapping[Use, range] = MappingProxyType(
    {"evaluation": range(150), "home": range(1_000, 1_016), "fresh": range(10_000, 10**9)}
)


def use_of(seed: int) -> Use:
    """Return the use of the machine of `seed`.

    Raises:
        ValueError: no machine has this seed.
    """
    for use, seeds in SEEDS.items():
        if seed in seeds:
            return use
    raise ValueError(f"no machine has the seed {seed}: seeds of evaluation machines are 0 to {SEEDS['evaluation'][-1]}")


@cache
def service_names(use: Use) -> tuple[str, ...]:
    """Return the service names of a use, such as `amber-finch`, in a fixed random order.

    A hash of the pair of words assigns it to one use, so that a name's use depends on nothing else.
    """
    names = [f"{first}-{second}" for first in WORDS for second in WORDS if first != second]
    chosen = [name for name in names if _use_of_name(name) == use]
    random.Random(f"toy-terminal-names-{use}").shuffle(chosen)
    return tuple(chosen)


def _use_of_name(name: str) -> Use:
    percent = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % 100
    return "evaluation" if percent < 27 else "home" if percent < 32 else "fresh"


def generate_machine(seed: int) -> World:
    """Generate the machine of `seed`, with the same bytes on every machine and Python version.

    Raises:
        ValueError: no machine has this seed.
    """
    use, size = use_of(seed), len(STEMS)
    rng = random.Random(f"toy-terminal-machine-{seed}")
    names = service_names(use)
    first = (seed - SEEDS[use].start) * size
    services = rng.sample(names if use == "fresh" else names[first : first + size], size)
    configs = {f"/etc/{stem}.yaml": service for stem, service in zip(STEMS, services, strict=True)}
    files = {path: _config(rng, service) for path, service in configs.items()}
    registry = list(configs.items())
    rng.shuffle(registry)
    files[REGISTRY] = "service,config\n" + "".join(f"{service},{path}\n" for path, service in registry)
    return World(seed, MappingProxyType(dict(sorted(files.items()))), MappingProxyType(configs), "machine")


def _config(rng: random.Random, service: str) -> str:
    keys = rng.sample(NUMBER_KEYS + WORD_KEYS, rng.randint(*SETTINGS_PER_FILE))
    values = [str(random_number(rng)) if key in NUMBER_KEYS else rng.choice(WORDS) for key in keys]
    return f"service: {service}\n" + "".join(f"{key}: {value}\n" for key, value in zip(keys, values, strict=True))
