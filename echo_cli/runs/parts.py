"""Figures of a run in several environments: of all together, `heldout/env_ce`, and of each, `heldout/NAME/env_ce`.

The pool of one environment is the part `heldout/NAME` of the pool `heldout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def base_of(pool: str) -> str:
    """Return the pool that a part belongs to; any other pool's own name."""
    return pool.partition("/")[0]


def environment_in(pool: str) -> str:
    """Return the environment of a part; "" for any other pool."""
    return pool.partition("/")[2]


def with_unions(parts: Mapping[str, T], join: Callable[[Sequence[T]], T]) -> dict[str, T]:
    """Return `parts` by pool name, and before the parts of each pool what `join` makes of them, as the whole pool."""
    found: dict[str, T] = {}
    for name, part in parts.items():
        base = base_of(name)
        if name != base and base not in found:
            found[base] = join([of for other, of in parts.items() if other != base and base_of(other) == base])
        found[name] = part
    return found


def row_of(row: Mapping[str, Any], environment: str, names: Iterable[str]) -> dict[str, Any]:
    """Return the row of metrics of one of several environments, under the names that a run in it alone would have.

    Metrics of all environments together are left out where each has its own.

    Args:
        names: names of all environments.
    """
    own = {
        f"{group}/{rest.removeprefix(f'{environment}/')}": value
        for key, value in row.items()
        for group, _, rest in [key.partition("/")]
        if rest.startswith(f"{environment}/")
    }
    parts = tuple(f"/{name}/" for name in names)
    shared = {key: value for key, value in row.items() if not any(part in key for part in parts)}
    measured = {key.partition("/")[0] for key in own} - {"train"}
    kept = {key: value for key, value in shared.items() if key.partition("/")[0] not in measured}
    return {**kept, **own}


def names_in(row: Mapping[str, Any]) -> list[str]:
    """Return the names of the environments that a row of metrics has figures of; none for a run in one."""
    return list(
        dict.fromkeys(
            key.split("/")[1] for key in row if key.startswith(("heldout/", "train/")) and key.count("/") == 2
        )
    )
