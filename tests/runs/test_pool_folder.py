"""Pools as files: reading is the inverse of writing, in any policy's tokens, and a damaged pool is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from canned_worlds import CannedWorlds
from pool_samples import (
    AWKWARD,
    LIMITS,
    ORIGIN,
    OTHER,
    PLAIN,
    PLAIN_OTHER,
    TASK,
    TOKENIZER,
    Printer,
    printed,
)

from echo_cli.config.schema import OptimConfig
from echo_cli.environments.toy import ToyWorlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import expert_pool
from echo_cli.evaluation.loaded_run import load_pool
from echo_cli.evaluation.measures import predict, tokens_of
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tiny import TinyConfig, TinyModel
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.episode import Episode
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.runs.pool_folder import contents_of, read_manifest, read_pool, write_pool
from echo_cli.runs.pools import pool_of
from echo_cli.traces.retokenize import retokenize
from echo_cli.trajectory import Role, Trajectory

torch.set_num_threads(1)


def sampled(*texts: str) -> Trajectory:
    """Return a policy's rollout whose ids are not the encoding of its text: one token per letter."""
    episode = Episode(PLAIN, Printer(*texts), TASK, "t", LIMITS)

    async def play() -> Trajectory:
        await episode.reset()
        for _ in texts:
            ids = [token for letter in "grep x\n" for token in TOKENIZER.encode(letter)]
            await episode.act(ids, [-0.25] * len(ids))
        return await episode.finish("policy", verify=True)

    return asyncio.run(play())


def tiny_policy(tokenizer: Tokenizer) -> TorchPolicy:
    model = TinyModel(TinyConfig(tokenizer.vocab_size, hidden=32, layers=2, heads=4, max_length=512))
    model.init_weights(torch.Generator().manual_seed(0))
    return TorchPolicy(model, PlainRenderer(tokenizer), OptimConfig(), torch.device("cpu"))


def text_of(trajectory: Trajectory) -> list[tuple[Role, str, str | None]]:
    return [(segment.role, segment.text, segment.channel) for segment in trajectory.segments]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write_pool(tmp_path / "pool", [printed(*AWKWARD), sampled("x\n")], TOKENIZER, ORIGIN)
    return tmp_path / "pool"


# --- What comes back -------------------------------------------------------------------------------------------------


def test_an_expert_pool_scores_from_its_file_as_it_did_in_memory(tmp_path: Path) -> None:
    worlds = ToyWorlds((0,), (101,), 5)
    tasks = worlds.tasks.heldout
    played = play_scripts(PLAIN, worlds, [(task, worlds.expert(task)) for task in tasks], LIMITS, "expert")
    manifest = write_pool(tmp_path / "pool", played, TOKENIZER, ORIGIN)
    live, loaded = expert_pool(worlds, tasks, PLAIN, LIMITS), load_pool(tmp_path / "pool", PLAIN)
    assert loaded == live
    assert manifest.contents.pairs == len(live.pairs)
    policy = tiny_policy(TOKENIZER)
    found = [predict(policy, pool, tokens_of(pool, (), TOKENIZER)) for pool in (loaded, live)]
    assert found[0].nats.tolist() == found[1].nats.tolist() and found[0].correct.tolist() == found[1].correct.tolist()


@pytest.mark.parametrize("tokenizer", [TOKENIZER, OTHER], ids=["its own", "another"])
def test_text_roles_and_pairs_survive_in_any_tokens(tokenizer: Tokenizer, pool: Path) -> None:
    _, played = read_pool(pool)
    assert played == [printed(*AWKWARD), sampled("x\n")]
    loaded = load_pool(pool, PlainRenderer(tokenizer))
    assert [text_of(trajectory) for trajectory in loaded.trajectories] == [text_of(trajectory) for trajectory in played]
    assert [trajectory.turns for trajectory in loaded.trajectories] == [trajectory.turns for trajectory in played]
    for trajectory in loaded.trajectories:
        first, *others = trajectory.segments
        assert first.token_ids == (tokenizer.bos_id, *tokenizer.encode(first.text))
        assert all(segment.token_ids == tuple(tokenizer.encode(segment.text)) for segment in others)
    spans = [span for spans in loaded.spans for span in spans]
    assert {span.pair for span in spans} == pool_of(played).pairs
    assert sum(span.output_bytes for span in spans) == sum(contents_of(played).env_output_bytes.values())
    tokens = tokens_of(loaded, (), tokenizer)
    assert len(set(tokens.span[tokens.headline].tolist())) == len(AWKWARD) + 1
    assert (predict(tiny_policy(tokenizer), loaded, tokens).nats > 0).all()


def test_a_script_is_encoded_again_as_it_was() -> None:
    short = EpisodeLimits(action_tokens=50, output_tokens=5, episode_tokens=10_000)
    for trajectory in (printed(*AWKWARD), printed(*AWKWARD, limits=short)):
        assert retokenize(trajectory, PLAIN) == trajectory
        assert retokenize(retokenize(trajectory, PLAIN_OTHER), PLAIN) == trajectory


def test_sampled_actions_are_encoded_from_their_text_and_rl_leaves_them_alone(pool: Path) -> None:
    action = load_pool(pool, PLAIN).trajectories[1].segments[1]
    assert action.token_ids == tuple(TOKENIZER.encode("grep x\n")) != sampled("x\n").segments[1].token_ids
    assert action.logprobs is None
    assert load_pool(pool, PLAIN).trajectories[1].world_model_only
    assert read_pool(pool)[1][1].segments[1].logprobs == sampled("x\n").segments[1].logprobs


def test_the_manifest_counts_bytes_that_no_tokenizer_changes(pool: Path) -> None:
    manifest = read_manifest(pool)
    outputs = "".join(AWKWARD) + "x\n"
    assert manifest.contents.env_output_bytes == {"stderr": 6 * 4, "stdout": len(outputs.encode())}
    assert manifest.contents.bytes["env_output"] == 6 * 4 + len(outputs.encode())
    assert manifest.contents.bytes["warning"] == 6 * len("[exit 1]\n")
    assert manifest.contents.bytes["context"] == 2 * len("task: é\n$ ".encode()) + 6 * 2
    assert (manifest.contents.trajectories, manifest.contents.pairs) == (2, 6)
    assert manifest.contents.tokens["action"] == sum(trajectory.count(Role.ACTION) for trajectory in read_pool(pool)[1])
    other = [retokenize(trajectory, PLAIN_OTHER) for trajectory in read_pool(pool)[1]]
    assert contents_of(other).bytes == manifest.contents.bytes
    assert contents_of(other).tokens != manifest.contents.tokens
    assert manifest.sha256 == hashlib.sha256((pool / "trajectories.jsonl").read_bytes()).hexdigest()
    assert manifest.provenance == ORIGIN and manifest.name == "pool"


def test_a_pool_that_does_not_fit_the_model_is_refused(pool: Path) -> None:
    longest = max(len(trajectory) for trajectory in load_pool(pool, PLAIN_OTHER).trajectories)
    load_pool(pool, PLAIN_OTHER, longest)
    with pytest.raises(EchoError, match=f"has {longest} tokens, the model's context is {longest - 1}"):
        load_pool(pool, PLAIN_OTHER, longest - 1)


# --- What is refused -------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(*keys: str, value: Any) -> Callable[[Path], None]:
    def edit(pool: Path) -> None:
        record = section = json.loads((pool / "manifest.json").read_text())
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        (pool / "manifest.json").write_text(json.dumps(record))

    return edit


def _forge(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change each trajectory, and update the hash in the manifest."""

    def forge(pool: Path) -> None:
        file = pool / "trajectories.jsonl"
        records = [json.loads(line) for line in file.read_bytes().splitlines()]
        for record in records:
            change(record)
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        _edit("sha256", value=hashlib.sha256(file.read_bytes()).hexdigest())(pool)

    return forge


def _empty(pool: Path) -> None:
    (pool / "trajectories.jsonl").write_bytes(b"")
    _edit("sha256", value=hashlib.sha256(b"").hexdigest())(pool)


def _deep(pool: Path) -> None:
    nested = b"[" * 100_000
    (pool / "trajectories.jsonl").write_bytes(nested)
    _edit("sha256", value=hashlib.sha256(nested).hexdigest())(pool)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pool: _flip(pool / "trajectories.jsonl"), "was changed after the pool was built: its SHA-256 is "),
        (lambda pool: (pool / "trajectories.jsonl").open("ab").write(b"\n"), "was changed after the pool was built"),
        (lambda pool: (pool / "trajectories.jsonl").write_bytes(b""), "was changed after the pool was built"),
        (lambda pool: (pool / "trajectories.jsonl").unlink(), "has no trajectories.jsonl"),
        (lambda pool: (pool / "manifest.json").unlink(), "is not a pool: it has no manifest.json"),
        (lambda pool: (pool / "manifest.json").write_text("{"), "manifest.json: not JSON"),
        (lambda pool: (pool / "manifest.json").write_text("[]"), "manifest.json: not a JSON object"),
        (lambda pool: (pool / "manifest.json").write_text("{}"), "its format is None, this version reads"),
        (_edit("format", value="echo-cli pool 2"), "its format is 'echo-cli pool 2'"),
        (_edit("sha256", value="0" * 64), "was changed after the pool was built"),
        (_edit("sha256", value=7), "invalid manifest: sha256: "),
        (_edit("provenance", "split", value="test"), "invalid manifest: provenance.split: "),
        (_edit("surprise\x1b[2J", value=1), "invalid manifest: surprise\\x1b[2J: "),
        (_edit("contents", "bytes", value={"env_output": 1}), "its contents do not match trajectories.jsonl"),
        (_edit("contents", "pairs", value=7), "its contents do not match trajectories.jsonl"),
        (_empty, "has nothing to measure: no output in 0 trajectories"),
        (_forge(lambda record: record["turns"].pop()), "trajectories.jsonl:1: invalid trajectory in a pool: 5 actions"),
        (
            _forge(lambda record: record["turns"][0].update(output=3)),
            "trajectories.jsonl:1: not a trajectory: turns.0.output",
        ),
        (
            _forge(lambda record: record["segments"][0].update(text=None)),
            "trajectories.jsonl:1: not a trajectory: segments.0.text",
        ),
        (_forge(lambda record: record["segments"][0].update(text="\ud800")), "trajectories.jsonl:1: not a trajectory"),
        (_forge(lambda record: record["segments"][2].update(channel=5)), "not a trajectory: segments.2.channel"),
        (_forge(lambda record: record["segments"][0].update(role="nobody")), "not a trajectory: segments.0.role"),
        (_forge(lambda record: record["turns"][0].update(exit_code="x")), "not a trajectory: turns.0.exit_code"),
        (_forge(lambda record: record.update(reward="all")), "trajectories.jsonl:1: not a trajectory: reward"),
        (_forge(lambda record: record.update(source="who")), "trajectories.jsonl:1: not a trajectory: source"),
        (_deep, "trajectories.jsonl:1: not a trajectory"),
        (lambda pool: (pool / "manifest.json").write_text("[" * 100_000), "manifest.json: not JSON"),
        (_forge(lambda record: record.update(x=1)), "trajectories.jsonl:1: not a trajectory"),
    ],
)
def test_what_was_changed_is_refused(damage: Callable[[Path], object], message: str, pool: Path) -> None:
    damage(pool)
    for read in (read_pool, lambda folder: load_pool(folder, PLAIN)):
        with pytest.raises(EchoError) as caught:
            read(pool)
        assert message in caught.value.message and caught.value.tip
        assert "\n" not in caught.value.message and "\x1b" not in caught.value.message
        assert caught.value.exit_code == 2


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match="nowhere does not exist"):
        read_manifest(tmp_path / "nowhere")


def test_trajectories_without_an_output_are_no_pool(tmp_path: Path) -> None:
    (silent,) = play_scripts(PLAIN, CannedWorlds(Printer()), [(TASK, [])], LIMITS, "expert")
    for trajectories in ([], [silent]):
        with pytest.raises(
            EchoError, match=f"nothing to measure: no command has output in {len(trajectories)} trajector"
        ):
            write_pool(tmp_path / "pool", trajectories, TOKENIZER, ORIGIN)
    assert list(tmp_path.iterdir()) == []


# --- Where it is written ---------------------------------------------------------------------------------------------


def test_the_same_trajectories_give_the_same_bytes(pool: Path, tmp_path: Path) -> None:
    write_pool(tmp_path / "twin" / "pool", [printed(*AWKWARD), sampled("x\n")], TOKENIZER, ORIGIN)
    for name in ("manifest.json", "trajectories.jsonl"):
        assert (tmp_path / "twin" / "pool" / name).read_bytes() == (pool / name).read_bytes()


def test_a_pool_is_replaced_only_on_request(pool: Path) -> None:
    before = read_pool(pool)
    with pytest.raises(EchoError, match="already contains a pool") as caught:
        write_pool(pool, [printed("new\n")], TOKENIZER, ORIGIN)
    assert "--overwrite" in (caught.value.tip or "") and read_pool(pool) == before
    _flip(pool / "trajectories.jsonl")  # a damaged one can be replaced
    write_pool(pool, [printed("new\n")], TOKENIZER, ORIGIN, overwrite=True)
    assert read_pool(pool)[1] == [printed("new\n")]
    assert [entry.name for entry in pool.parent.iterdir()] == ["pool"]


def test_what_is_not_a_pool_is_never_replaced(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "manifest.json").write_text('{"format": "thesis"}')
    (pool / "notes.md").write_text("mine")
    for name, message in (("file", "not a folder"), ("thesis", "not a pool"), ("pool", r"contains notes\.md, which")):
        with pytest.raises(EchoError, match=message):
            write_pool(tmp_path / name, [printed("new\n")], TOKENIZER, ORIGIN, overwrite=True)
    assert (pool / "notes.md").read_text() == "mine"


def test_an_empty_folder_and_a_link_to_a_pool_are_filled(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_pool(tmp_path / "empty", [printed("new\n")], TOKENIZER, ORIGIN)
    (tmp_path / "link").symlink_to(pool)
    write_pool(tmp_path / "link", [printed("new\n")], TOKENIZER, ORIGIN, overwrite=True)
    assert (tmp_path / "link").is_symlink() and read_pool(pool)[1] == [printed("new\n")]


def test_a_write_that_fails_leaves_the_old_pool_and_nothing_else(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_pool(pool)

    def fail(path: Path, value: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("echo_cli.runs.pool_folder.write_json", fail)
    with pytest.raises(EchoError, match="the disk is full") as caught:
        write_pool(pool, [printed("new\n")], TOKENIZER, ORIGIN, overwrite=True)
    assert caught.value.exit_code == 1
    assert read_pool(pool) == before
    assert [entry.name for entry in pool.parent.iterdir()] == ["pool"]


def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EchoError, match="cannot write ") as caught:
        write_pool(tmp_path / "file" / "pool", [printed("new\n")], TOKENIZER, ORIGIN)
    assert caught.value.exit_code == 2
