"""A toy world: a small read-only file system of configs, logs and tables, generated from a seed.

Names, values and orders are random, so nothing about one world can be guessed from another; only the
formats (`key: value`, `time LEVEL service message`, `a,b,c`) are shared. Pure data, standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

WORDS = (
    "acorn amber anchor aspen badger basil beacon birch bison cactus canyon cedar cinder clover cobalt comet "
    "copper coral crane cricket dahlia delta dingo dune eagle ember falcon fennel finch fjord flint fox garnet "
    "geyser ginger granite grove gull harbor hazel heron hornet indigo iris ivory jackal jasper juniper kelp "
    "kestrel kiwi lagoon lark laurel lemur lilac linden lotus lupin lynx magnet maple marble meadow merlin mint "
    "moss myrtle nectar oak olive onyx opal orchid osprey otter pebble pepper pine plover poppy quail quartz "
    "raven reed ridge robin ruby sage salmon shale slate sparrow spruce swift tango teal thorn topaz tulip tundra "
    "umber valley violet walnut willow wren zinc"
).split()

NUMBER_KEYS = (
    "port retries timeout_ms pool_size cache_mb backoff_s max_conn batch ttl_s quota window_s workers burst "
    "heap_mb lease_s budget grace_s limit_rps shards replicas"
).split()
WORD_KEYS = "region owner queue zone mode upstream cluster bucket topic channel probe standby".split()

LEVELS = ("INFO", "WARN", "ERROR")
MESSAGES = (
    "disk full on {word}-{n}",
    "lease lost on {word}",
    "retry {n} to {word}",
    "slow query {n} ms",
    "{word} connected",
    "{word} timed out",
    "started worker {n}",
    "dropped {n} packets",
    "cache miss for {word}",
    "reloaded {word} config",
)
TABLE_COLUMNS = "zone owner rack state tier load quota age".split()
NUMBER_COLUMNS = ("load", "quota", "age")

CONFIGS, LOGS, TABLES = 4, 3, 3
# (smallest, largest) number per file. Sizes vary, so that a line count cannot be known without looking.
KEYS_PER_CONFIG, LINES_PER_LOG, ROWS_PER_TABLE = (8, 10), (10, 12), (7, 9)
REGISTRY = "/srv/registry.csv"

Kind = Literal["files", "machine"]


@dataclass(frozen=True)
class World:
    """A generated file system. `files` maps absolute paths to their text; every text ends with a newline."""

    seed: int
    files: Mapping[str, str]
    service_of: Mapping[str, str]
    """Service that each config file configures, by path."""
    kind: Kind = "files"

    def lines(self, path: str) -> list[str]:
        return self.files[path].splitlines()

    def paths(self, suffix: str) -> list[str]:
        return [path for path in self.files if path.endswith(suffix)]


def generate_world(seed: int) -> World:
    """Generate the world of `seed`, with the same bytes on every machine and Python version."""
    rng = random.Random(f"toy-terminal-world-{seed}")
    stems = rng.sample(WORDS, CONFIGS + LOGS + TABLES)
    services = rng.sample([word for word in WORDS if word not in stems], CONFIGS)
    configs = {f"/etc/{stem}.yaml": service for stem, service in zip(stems[:CONFIGS], services, strict=True)}
    files = {path: _config(rng, service) for path, service in configs.items()}
    files |= {f"/var/log/{stem}.log": _log(rng, services) for stem in stems[CONFIGS : CONFIGS + LOGS]}
    hosts = rng.sample(WORDS, TABLES * ROWS_PER_TABLE[1])
    files |= {f"/srv/{stem}.csv": _table(rng, hosts[i::TABLES]) for i, stem in enumerate(stems[CONFIGS + LOGS :])}
    registry = list(configs.items())
    rng.shuffle(registry)
    files[REGISTRY] = "service,config\n" + "".join(f"{service},{path}\n" for path, service in registry)
    return World(seed, MappingProxyType(dict(sorted(files.items()))), MappingProxyType(configs))


def random_number(rng: random.Random) -> int:
    return rng.randrange(10, 10 ** rng.choice((2, 3, 3, 4)))


def _config(rng: random.Random, service: str) -> str:
    keys = rng.sample(NUMBER_KEYS, 6) + rng.sample(WORD_KEYS, rng.randint(*KEYS_PER_CONFIG) - 6)
    rng.shuffle(keys)
    values = [str(random_number(rng)) if key in NUMBER_KEYS else rng.choice(WORDS) for key in keys]
    return f"service: {service}\n" + "".join(f"{key}: {value}\n" for key, value in zip(keys, values, strict=True))


def _log(rng: random.Random, services: list[str]) -> str:
    lines, minute = [], rng.randrange(0, 600)
    for _ in range(rng.randint(*LINES_PER_LOG)):
        minute += rng.randrange(1, 70)
        message = rng.choice(MESSAGES).format(word=rng.choice(WORDS), n=rng.randrange(2, 100))
        lines.append(f"{minute // 60:02d}:{minute % 60:02d} {rng.choice(LEVELS)} {rng.choice(services)} {message}\n")
    return "".join(lines)


def _table(rng: random.Random, hosts: list[str]) -> str:
    columns = rng.sample(TABLE_COLUMNS, 2)
    rows = [
        [f"{host}-{rng.randrange(10, 100)}", *(_cell(rng, column) for column in columns)]
        for host in hosts[: rng.randint(*ROWS_PER_TABLE)]
    ]
    return "".join(",".join(row) + "\n" for row in [["host", *columns], *rows])


def _cell(rng: random.Random, column: str) -> str:
    return str(random_number(rng)) if column in NUMBER_COLUMNS else rng.choice(WORDS)
