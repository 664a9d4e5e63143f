"""The mark of a run that was made here: bound to the config's bytes, and to a key that only this user can read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_run import train

from echo_cli.config.effects import effects_of
from echo_cli.config.loader import load_config
from echo_cli.errors import EchoError
from echo_cli.runs.origin import Consent, config_text, is_made_here, unmarked_line, write_config


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a key that does not exist yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "echo-cli" / "key"


@pytest.fixture
def run(key: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, "seed: 0\n")
    return folder


def test_a_run_is_marked_with_a_key_that_its_user_alone_can_read(run: Path, key: Path) -> None:
    assert is_made_here(run) and unmarked_line(run) is None
    assert len(key.read_bytes()) == 32 and key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in key.parent.iterdir()] == ["key"]
    assert key.read_bytes().hex() not in (run / "origin").read_text()


def test_a_mark_holds_for_the_config_as_it_is_wherever_the_run_lies(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "moved")
    assert is_made_here(moved)
    (moved / "config.yaml").write_text("seed: 1\n")
    assert not is_made_here(moved)
    (moved / "config.yaml").write_text("seed: 0\n")
    (moved / "origin").unlink()
    assert not is_made_here(moved)


def test_a_mark_holds_for_the_config_that_was_read_not_for_one_put_in_its_place(run: Path) -> None:
    effects = effects_of(load_config("toy", ["environment.url=http://host:1"]))
    assert config_text(run) == "seed: 0\n" and is_made_here(run, config_text(run))
    Consent(text="seed: 0\n").obtain(effects, run)
    assert not is_made_here(run, "seed: 1\n")
    with pytest.raises(EchoError, match="its config was edited"):
        Consent(text="seed: 1\n").obtain(effects, run)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("mark", ["endless", "pipe", "link", "long"])
def test_a_mark_is_a_short_file(run: Path, mark: str) -> None:
    own = (run / "origin").rename(run / "kept")
    if mark == "pipe":
        os.mkfifo(run / "origin")
    elif mark == "long":
        (run / "origin").write_bytes(own.read_bytes() + b"0")
    else:
        (run / "origin").symlink_to("/dev/zero" if mark == "endless" else own)
    assert not is_made_here(run)


@pytest.mark.parametrize("state", ["other", "short", "shared", "gone", "link", "pipe"])
def test_with_another_key_or_an_unsafe_one_nothing_was_made_here(run: Path, key: Path, state: str) -> None:
    own = key.read_bytes()
    if state == "shared":
        key.chmod(0o640)
    elif state == "link":
        key.rename(key.with_name("elsewhere"))
        key.symlink_to("elsewhere")
    else:
        key.unlink()
    if state == "pipe":
        os.mkfifo(key, 0o600)
    if state in ("other", "short"):
        key.touch(mode=0o600)
        key.write_bytes(bytes(32) if state == "other" else own[:8])
    assert not is_made_here(run)
    with pytest.raises(EchoError) as refused:
        Consent().obtain(effects_of(load_config("toy", ["environment.url=http://host:1"])), run)
    assert (str(key) in refused.value.message) == (state not in ("other", "gone"))
    write_config(run, "seed: 2\n")
    assert is_made_here(run) == (state in ("other", "gone"))
    line = unmarked_line(run)
    assert (line is None) == is_made_here(run) and (line is None or str(key) in line)


def test_of_several_processes_that_start_at_once_one_makes_the_key(key: Path, tmp_path: Path) -> None:
    runs = [tmp_path / f"run-{number}" for number in range(8)]
    for folder in runs:
        folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda folder: write_config(folder, "seed: 0\n"), runs))
    assert all(map(is_made_here, runs))


@pytest.mark.parametrize("home", ["state/file", "relative"])
def test_training_goes_on_without_a_home_and_says_so(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", home if home == "relative" else str(tmp_path / home))
    monkeypatch.setenv("HOME", str(tmp_path / "state"))
    assert train(tmp_path / "run", "--steps", "1") == 0
    said = capsys.readouterr().err
    assert said.count("train: the run is not marked as made here (") == 1 and "Not a directory" in said
    assert not is_made_here(tmp_path / "run")


def test_without_a_word_and_a_terminal_a_run_from_elsewhere_is_refused(run: Path) -> None:
    (run / "origin").write_text("0" * 64)
    effects = effects_of(load_config("toy", [r'environment.url="http://host:1/\x1b[31m"']))
    said: list[str] = []
    with pytest.raises(EchoError, match=r"this command contacts http://host:1/\\x1b\[31m$") as error:
        Consent().obtain(effects, run)
    assert error.value.exit_code == 2
    Consent(ask=lambda line: not said.append(line)).obtain(effects, run)
    assert len(said) == 1 and "was not made by you on this machine" in said[0]
    Consent().obtain(effects)  # of a config on the command line
    Consent().obtain(effects_of(load_config("toy")), run)


def test_only_fetching_needs_no_second_word_and_is_announced(run: Path) -> None:
    (run / "origin").unlink()
    said: list[str] = []
    words = ["model.kind=hf", "model.path=nobody/nothing", "model.revision=main", "model.fetch=all"]
    Consent(say=said.append).obtain(effects_of(load_config("toy", words)), run)
    assert said == ["this command may fetch nobody/nothing at main from the hub"]
    with pytest.raises(EchoError, match="contacts http://h:1; may fetch nobody/nothing at main from the hub"):
        Consent().obtain(effects_of(load_config("toy", [*words, "environment.url=http://h:1"])), run)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_key_behind_a_link_of_another_user_is_not_used(run: Path, key: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.rename(tmp_path / "theirs")
    state.symlink_to(tmp_path / "theirs")
    assert is_made_here(run)
    os.chown(state, 65534, 65534, follow_symlinks=False)
    assert not is_made_here(run)
    assert "symbolic link of another user" in str(unmarked_line(run))
    (tmp_path / "theirs" / "echo-cli" / "key").unlink()
    write_config(run, "seed: 0\n")
    assert not is_made_here(run) and not key.exists()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], ""),
        (["track=[wandb,tensorboard]"], "contacts wandb"),
        (
            [
                "environment.provider.kind=docker",
                "environment.provider.image=a/b",
                "environment.provider.options={c: 1}",
            ],
            'starts docker image a/b with {"c": 1}',
        ),
        (
            ["environment.provider.kind=uv", "environment.provider.project_path=/p", "environment.client=a.b:C"],
            "starts uv project /p, app server.app:app; imports a.b:C",
        ),
        (["environment.provider.kind=a.b:C"], "starts a server of a.b:C; imports a.b:C"),
        (
            ["environment.object=a.b:C", "environment.object_options={home: /x}"],
            'imports a.b:C with {"home": "/x"}',
        ),
        (
            [
                *("model.kind=hf", "model.path=random-qwen3", "sampler.kind=openai", "sampler.sync=sglang"),
                *("sampler.url=http://h:1", "sampler.model=m", "sampler.weights=/w"),
                "sampler.headers={Authorization: 'Bearer ${KEY}'}",
            ],
            "contacts http://h:1; sends KEY; writes /w",
        ),
    ],
)
def test_every_key_that_acts_has_its_place_in_the_line(overrides: list[str], line: str) -> None:
    assert str(effects_of(load_config("toy", overrides), trackers=True)) == line
