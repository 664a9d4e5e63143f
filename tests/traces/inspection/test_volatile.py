"""Text that looks volatile, and text that does not."""

from __future__ import annotations

import pytest

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.traces.inspection.outputs import PATTERNS, Volatile, find_volatile


@pytest.mark.parametrize(
    ("text", "kind", "matched"),
    [
        ("at 2026-01-05T10:20:30.123Z.", "timestamp", "2026-01-05T10:20:30.123Z"),
        ("2026-01-05 10:20:30,123 INFO", "timestamp", "2026-01-05 10:20:30,123"),
        ("2026-01-05 10:20:30.000000000 +0100 f", "timestamp", "2026-01-05 10:20:30.000000000 +0100"),
        ("Mon Jan  5 10:20:30 UTC 2026", "timestamp", "Mon Jan  5 10:20:30 UTC 2026"),
        ("-rw-r--r-- 1 u g 12 Jan  5 10:20 a.txt", "timestamp", "Jan  5 10:20"),
        ("Date: Mon, 05 Jan 2026 10:20:30 GMT", "timestamp", "Mon, 05 Jan 2026 10:20:30 GMT"),
        ('"GET" [05/Jan/2026:10:20:30 +0000]', "timestamp", "05/Jan/2026:10:20:30 +0000"),
        ("up since 10:20:30", "timestamp", "10:20:30"),
        ("mtime 1767608430.25", "epoch_time", "1767608430.25"),
        ("now=1767608430123", "epoch_time", "1767608430123"),
        ("real\t0m0.003s", "duration", "0m0.003s"),
        ("3 passed in 0.12s", "duration", "0.12s"),
        ("rtt 12 ms", "duration", "12 ms"),
        ("PID: 4711 died", "pid", "PID: 4711"),
        ("sshd[4711]: closed", "pid", "4711"),
        ("[1] 4711\n", "pid", "4711"),
        ("<object at 0x7f00aa11bb22>", "hex_address", "0x7f00aa11bb22"),
        ("id 123E4567-e89b-12d3-a456-426614174000", "uuid", "123E4567-e89b-12d3-a456-426614174000"),
        ("in /tmp/tmpab12_x/file", "temporary_path", "/tmp/tmpab12_x"),
        ("/var/folders/zz/abc", "temporary_path", "/var/folders/zz/abc"),
        ("http://127.0.0.1:54321/", "port", "54321"),
        ("listening on port 54321", "port", "port 54321"),
    ],
)
def test_what_differs_from_run_to_run_is_found(text: str, kind: str, matched: str) -> None:
    assert find_volatile(text) == [Volatile(kind, matched)]


@pytest.mark.parametrize(
    "text",
    ["quota: 7842", "2026-01-05", "5 files", "10 seconds", "0xff", "version 1.2.3", "17676084301 items", "a[3] = 4",
     "rapid 4711", "12345678-1234", "sum 1767608430.5.1", "/etc/tmp/x", "lines 10:20"],
)  # fmt: skip
def test_what_looks_like_data_is_left_alone(text: str) -> None:
    assert find_volatile(text) == []


def test_stretches_do_not_overlap_and_the_first_kind_has_them() -> None:
    text = "/tmp/123e4567-e89b-12d3-a456-426614174000 at 2026-01-05 10:20:30"
    assert find_volatile(text) == [
        Volatile("uuid", "123e4567-e89b-12d3-a456-426614174000"),
        Volatile("timestamp", "2026-01-05 10:20:30"),
    ]


def test_the_patterns_can_stand_in_a_config() -> None:
    section = {"object": "a:B", "tasks": {"seeds": 9}, "volatile": tuple(PATTERNS.values())}
    assert EnvironmentConfig.model_validate(section).volatile == tuple(PATTERNS.values())


@pytest.mark.parametrize("line", ["1" * 200_000, "a:" * 100_000, "/tmp/" * 40_000, "pid " * 50_000, " " * 200_000])
def test_a_very_long_line_is_read_once(line: str) -> None:
    find_volatile(line)
