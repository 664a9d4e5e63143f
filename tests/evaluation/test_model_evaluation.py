"""`eval-heldout --model`: models on the same text in their own tokens, and refused command lines."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pool_samples import AWKWARD, ORIGIN, OTHER, PLAIN, PLAIN_OTHER, TOKENIZER, printed
from tiny_run import error_of, rows

from echo_cli.cli.main import main
from echo_cli.config.loader import find_config, load_config
from echo_cli.config.model import RANDOM_QWEN3, ConversationConfig, ModelConfig
from echo_cli.config.schema import Config, OptimConfig
from echo_cli.errors import EchoError
from echo_cli.evaluation import model_evaluation
from echo_cli.evaluation.baselines import ORDER, exchange_tokens, fit_ngram, has_zstd, ngram_predictions
from echo_cli.evaluation.loaded_run import load_pool
from echo_cli.evaluation.measures import measure, predict, tokens_of
from echo_cli.evaluation.model_evaluation import ScoredModel, check_same_outputs
from echo_cli.evaluation.named_models import NamedModel, contenders, kind_of, loading_config
from echo_cli.evaluation.records import CSV_COLUMNS, MEASURES
from echo_cli.evaluation.run_evaluation import novel_pairs
from echo_cli.models.hf.random_qwen3 import make_random_qwen3
from echo_cli.models.loading import load_renderer
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Frame, PlainRenderer, Renderer
from echo_cli.models.tiny import TinyConfig, TinyModel, load_model, save_model
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.pool_folder import write_pool
from echo_cli.runs.pools import Pool
from echo_cli.trajectory import SCAFFOLD, Role, Segment

torch.set_num_threads(1)

V, V_OTHER = TOKENIZER.vocab_size, OTHER.vocab_size
BASELINES = ["uniform", "copying", "gzip", *(["zstd"] if has_zstd() else [])]


class ChattyRenderer(PlainRenderer):
    """A renderer that writes a line of scaffold before and after each reply of the environment."""

    def opening(self) -> Frame:
        scaffold = Segment(Role.CONTEXT, "<turn>\n", tuple(self.tokenizer.encode("<turn>\n")), channel=SCAFFOLD)
        return Frame((scaffold,), (scaffold,))

    def reply(self, action_ids: Sequence[int]) -> Frame:
        return self.opening()


def tiny_folder(folder: Path, tokenizer: Tokenizer, seed: int | None) -> Path:
    """Write a model folder with random weights; without a seed, all tokens are equally probable."""
    model = TinyModel(TinyConfig(tokenizer.vocab_size, hidden=32, layers=1, heads=4, max_length=2048))
    model.init_weights(torch.Generator().manual_seed(seed or 0))
    if seed is None:
        torch.nn.init.zeros_(model.embedding.weight)
    folder.mkdir(parents=True)
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pools `expert` (two episodes, three commands each) and `fit` (one pair of it), and models."""
    place = tmp_path_factory.mktemp("place")
    first, second = printed("alpha: 12\n", "日本 🚀\n", "x y\n"), printed("beta: 7\n", "gamma\n", "long\nlines\nhere\n")
    write_pool(place / "expert", [first, second], TOKENIZER, ORIGIN)
    write_pool(place / "fit", [printed("alpha: 12\n"), printed("beta: 8\n")], TOKENIZER, ORIGIN)
    tiny_folder(place / "one" / "step_000002", TOKENIZER, 1)
    tiny_folder(place / "two" / "step_000002", TOKENIZER, 2)
    tiny_folder(place / "uniform", TOKENIZER, None)
    tiny_folder(place / "other", OTHER, None)
    return place


Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(place: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Return the result of `eval-heldout --json` for the given models on `expert`."""
    monkeypatch.chdir(place)

    def evaluated(models: Sequence[str], *words: str) -> dict[str, Any]:
        named = [word for path in models for word in ("--model", path)]
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            assert main(["eval-heldout", *named, "--pool", "expert", "--json", "threads=1", *words]) == 0, (
                err.getvalue()
            )
        result: dict[str, Any] = json.loads(out.getvalue())
        return result

    return evaluated


def headlines(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["model"]: entry for entry in result["measurements"] if entry["group"] == "headline"}


def policy_of(folder: Path) -> TorchPolicy:
    model, tokenizer = load_model(folder)
    return TorchPolicy(model, PlainRenderer(tokenizer), OptimConfig(), torch.device("cpu"))


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_each_model_is_measured_over_all_pairs_in_its_own_tokens(evaluate: Evaluate, place: Path) -> None:
    result = evaluate(["uniform", "other"])
    texts = ["alpha: 12\n", "日本 🚀\n", "x y\n", "beta: 7\n", "gamma\n", "long\nlines\nhere\n"]
    size = sum(len(text.encode()) for text in texts) + 6 * len("err\n")
    assert result["pairs"] == result["novel_pairs"] == {"expert": 6}
    bits, uniform = {}, f"{place.name}/uniform"  # "uniform" is a baseline's name
    for name, tokenizer in ((uniform, TOKENIZER), ("other", OTHER)):
        count = sum(len(tokenizer.encode(text)) for text in [*texts, *["err\n"] * 6])
        entry = headlines(result)[name]
        assert (entry["tokens"], entry["bytes"], entry["trajectories"]) == (count, size, 2)
        assert entry["env_ce"]["value"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
        bits[name] = count * math.log2(tokenizer.vocab_size) / size
        assert entry["env_bits_per_byte"]["value"] == pytest.approx(bits[name], rel=1e-6)
    first, other = result["models"]
    assert (first["same_tokens"], first["vocab_size"], other["same_tokens"], other["vocab_size"]) == (
        *(True, V),
        *(False, V_OTHER),
    )
    assert other["expert/env_bits_per_byte"] == pytest.approx(bits["other"], rel=1e-6)
    (difference,) = result["differences"]
    assert difference["model"] == "other" and difference["env_ce"] is None  # nats per token are not comparable
    assert difference["env_bits_per_byte"]["value"] == pytest.approx(bits["other"] - bits[uniform], abs=1e-6)
    (note,) = [note for note in result["notes"] if "tokens" in note]
    assert note.startswith(f"* other: tokens differ from the tokens of {uniform}")


def test_later_models_are_paired_with_the_first(evaluate: Evaluate, place: Path) -> None:
    result = evaluate(["one/step_000002", "two/step_000002", "other"])
    assert [model["model"] for model in result["models"]] == ["one/step_000002", "two/step_000002", "other"]
    pool = load_pool(place / "expert", PLAIN)
    tokens = tokens_of(pool, (), TOKENIZER)
    found = {name: predict(policy_of(place / name / "step_000002"), pool, tokens) for name in ("one", "two")}
    for name, predictions in found.items():
        measures = measure(tokens, predictions, tokens.headline)
        assert measures is not None
        entry = headlines(result)[f"{name}/step_000002"]
        for measured in MEASURES:
            assert entry[measured]["value"] == pytest.approx(measures.estimates[measured].value, abs=1e-7)
    paired = {entry["model"]: entry for entry in result["differences"]}
    less = (found["two"].nats - found["one"].nats)[tokens.headline].sum()
    size = tokens.byte_count[tokens.headline].sum()
    both = paired["two/step_000002"]
    assert both["env_ce"]["value"] == pytest.approx(less / tokens.headline.sum(), abs=1e-6)
    assert both["env_bits_per_byte"]["value"] == pytest.approx(less / math.log(2) / size, abs=1e-6)
    assert both["env_ce"]["low"] <= both["env_ce"]["value"] <= both["env_ce"]["high"]
    assert paired["other"]["env_ce"] is None and paired["other"]["env_bits_per_byte"] is not None


def test_a_model_does_not_differ_from_a_copy_of_it(evaluate: Evaluate, place: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(place / "one" / "step_000002", tmp_path / "copy")
    (difference,) = evaluate(["one/step_000002", str(copy)])["differences"]
    for name in ("env_ce", "env_bits_per_byte"):
        assert difference[name] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_start_of_a_run_and_its_checkpoint_are_measured_as_the_run_measures_them(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of files: on a machine, a run's pool has reserved commands too.
    assert main(["pool", "build", str(tmp_path / "expert"), "--config", "toy-files", "threads=1"]) == 0
    checkpoint = finished / "checkpoints" / "step_000004"
    capsys.readouterr()
    words = ["--model", "tiny-base", "--model", str(checkpoint), "--pool", str(tmp_path / "expert"), "threads=1"]
    assert main(["eval-heldout", *words, "--json"]) == 0
    captured = capsys.readouterr()
    before, after = json.loads(captured.out)["models"]
    start = rows(finished)[0]
    for name in ("env_ce", "env_bits_per_byte", "token_accuracy"):
        assert before[f"expert/{name}"] == pytest.approx(start[f"heldout/{name}"], abs=1e-6)
    assert (before["model"], after["model"]) == ("tiny-base", "step_000004")
    assert after["expert/env_ce"] != before["expert/env_ce"]
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["model tiny-base", "model step_000004"]


# --- The same text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renderer", [PLAIN_OTHER, ChattyRenderer(TOKENIZER), ChattyRenderer(OTHER)])
def test_a_renderer_changes_tokens_and_never_pairs_or_bytes(renderer: Renderer, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", [printed(*AWKWARD), printed("x\n", "other\n")], TOKENIZER, ORIGIN)
    ours, theirs = (load_pool(tmp_path / "pool", each) for each in (PLAIN, renderer))
    spans = [[[(span.pair, span.output_bytes) for span in of] for of in pool.spans] for pool in (ours, theirs)]
    assert spans[0] == spans[1]
    columns = [tokens_of(pool, (), each.tokenizer) for pool, each in ((ours, PLAIN), (theirs, renderer))]
    for number in range(2):
        sizes = [int(tokens.byte_count[tokens.headline & (tokens.trajectory == number)].sum()) for tokens in columns]
        assert sizes[0] == sizes[1] == sum(span.output_bytes for span in ours.spans[number])
    assert [len(t) for t in theirs.trajectories] != [len(t) for t in ours.trajectories]
    # Scaffold is context, so the measured tokens are the same.
    assert np.array_equal(columns[0].token_id, columns[1].token_id) == (renderer.tokenizer is TOKENIZER)


def test_models_without_the_same_outputs_are_refused(place: Path) -> None:
    pool = load_pool(place / "expert", PLAIN)

    def scored(label: str, pool: Pool) -> ScoredModel:
        return ScoredModel(NamedModel(label, label, "tiny"), "cpu", PLAIN, 2048, {"expert": pool}, {}, {}, "", {})

    first = scored("a", pool)
    check_same_outputs(first, scored("b", pool))
    shorter = Pool(pool.trajectories[:1], pool.spans[:1])
    cut = Pool(pool.trajectories, (pool.spans[0], (replace(pool.spans[1][0], output_bytes=1), *pool.spans[1][1:])))
    for other in (shorter, cut):
        with pytest.raises(EchoError, match="the outputs of expert differ between b and a"):
            check_same_outputs(first, scored("b", other))


# --- Baselines -------------------------------------------------------------------------------------------------------


def test_baselines_need_no_text(evaluate: Evaluate, place: Path) -> None:
    found = headlines(evaluate(["one/step_000002"]))
    assert list(found) == ["step_000002", *BASELINES]
    assert found["uniform"]["env_ce"]["value"] == pytest.approx(math.log(V))
    tokens = tokens_of(load_pool(place / "expert", PLAIN), (), TOKENIZER)
    # A match continues with probability 1/2; the other V - 1 tokens share the rest.
    matched, hit = tokens.match_length > 0, tokens.match_token == tokens.token_id
    nats = np.where(matched, np.where(hit, math.log(2), math.log(2 * (V - 1))), math.log(V))
    assert found["copying"]["env_ce"]["value"] == pytest.approx(nats[tokens.headline].mean())


def test_a_fit_pool_stands_for_what_training_observed(evaluate: Evaluate, place: Path) -> None:
    result = evaluate(["one/step_000002"], "--fit-pool", "fit")
    assert result["fit_pool"] == "fit"
    assert (result["pairs"], result["novel_pairs"]) == ({"expert": 6}, {"expert": 5})
    found = headlines(result)
    assert {f"{ORDER}-gram", "unigram", "copying", "gzip", "gzip + observations"} <= found.keys()
    assert "uniform" not in found
    fit, pool = load_pool(place / "fit", PLAIN), load_pool(place / "expert", PLAIN)
    pairs = [span.pair for spans in fit.spans for span in spans]
    tokens = tokens_of(pool, pairs, TOKENIZER)
    assert novel_pairs(tokens) == 5
    model = fit_ngram(exchange_tokens(pairs, TOKENIZER), ORDER, V)
    measures = measure(tokens, ngram_predictions(model, tokens), tokens.headline)
    assert measures is not None
    assert found[f"{ORDER}-gram"]["env_ce"]["value"] == pytest.approx(measures.estimates["env_ce"].value)
    assert {entry["bytes"] for entry in found.values()} == {measures.bytes}
    assert found["gzip + observations"]["env_bits_per_byte"] != found["gzip"]["env_bits_per_byte"]
    assert "pairs omitted from the headline because the baselines are fitted on them: 1" in result["notes"]
    assert {e["key"] for e in result["measurements"] if e["group"] == "pair"} == {"novel", "seen"}


def test_a_pool_that_is_fitted_on_has_no_headline(
    evaluate: Evaluate, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--fit-pool", "expert")
    result = evaluate(["one/step_000002", "other"], *words)
    assert result["novel_pairs"] == {"expert": 0} and headlines(result) == {}
    assert all(entry["env_ce"] is entry["env_bits_per_byte"] is None for entry in result["differences"])
    models = ["--model", "one/step_000002", "--model", "other"]
    capsys.readouterr()
    assert main(["eval-heldout", *models, "--pool", "expert", *words, "--breakdown", "-o", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["novel", "pairs", "0"] in [line.split() for line in lines]


# --- What is printed and written -------------------------------------------------------------------------------------


def test_the_table_compares_what_compares(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", "one/step_000002", "--model", "two/step_000002"]
    words = ["--pool", "expert", "threads=1", "--breakdown"]
    assert main(["eval-heldout", *models, *words]) == 0
    alike = capsys.readouterr().out
    assert "env-CE, nats/token, minus one/step_000002" in alike and "expert env-CE, nats/token" in alike
    assert "next token is" in alike and "*" not in alike
    assert "all pairs are included, as nothing is trained here" in " ".join(alike.split())
    assert alike.count("tokens correct, teacher-forced)") == 2
    assert main(["eval-heldout", *models, "--model", "other", *words]) == 0
    mixed = capsys.readouterr().out
    assert "expert bits per byte" in mixed and "next token is" not in mixed  # groups of tokens have different text
    less = mixed.partition("bits per byte, minus one/step_000002")[2].partition("pairs")[0].splitlines()
    assert [line.split()[0] for line in less if line.strip()] == [
        *("two/step_000002", "other"),
        *("env-CE,", "two/step_000002"),
    ]
    assert mixed.count("other *") == 3 and "tokens of other" in mixed and "\nnote: * other: " in mixed


def test_json_csv_and_picture_hold_the_same(
    evaluate: Evaluate, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.iterdir())
    result = evaluate(["one/step_000002", "other"])
    assert result["figure"] is None and sorted(place.iterdir()) == before
    capsys.readouterr()
    models = ["--model", "one/step_000002", "--model", "other"]
    assert main(["eval-heldout", *models, "--pool", "expert", "--csv", "threads=1", "-o", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err.endswith(f"figure: {tmp_path / 'heldout_models.png'}\n")
    assert (tmp_path / "heldout_models.csv").read_text() == captured.out
    assert (tmp_path / "heldout_models.svg").is_file()
    table = list(csv.DictReader(io.StringIO(captured.out)))
    assert tuple(table[0]) == CSV_COLUMNS
    (found,) = (r for r in table if (r["model"], r["group"], r["measure"]) == ("other", "headline", "env_ce"))
    assert float(found["value"]) == result["models"][1]["expert/env_ce"]
    assert (found["run"], found["step"]) == ("other", "")
    (less,) = (r for r in table if r["model"] == "difference")
    assert (less["run"], less["measure"]) == ("other - step_000002", "env_bits_per_byte")
    assert float(less["value"]) == result["differences"][0]["env_bits_per_byte"]["value"]


def test_one_command_is_read_out_by_every_model(evaluate: Evaluate, place: Path) -> None:
    readout = evaluate(["one/step_000002", "other"], "--command", " cat  2 ")["readout"]
    assert readout["command"] == "cat 2" and readout["actual"] == "x y\n"
    first, other = readout["models"]
    assert [first["model"], other["model"]] == ["step_000002", "other"]
    assert [first["tokens"], other["tokens"]] == [len(each.encode("x y\n")) for each in (TOKENIZER, OTHER)]
    assert 0 <= first["correct"] <= first["tokens"]
    assert evaluate(["one/step_000002"])["readout"]["command"] == "cat 0"


def test_a_hostile_name_is_shown_and_does_nothing(
    evaluate: Evaluate, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J[bold]$\\frac{1}{0}$"
    hostile = shutil.copytree(place / "other", tmp_path / name)
    models = ["--model", "one/step_000002", "--model", str(hostile), "--pool", "expert", "threads=1"]
    assert main(["eval-heldout", *models, "--breakdown", "--output", str(tmp_path / "picture.png")]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err + (tmp_path / "picture.csv").read_text()
    assert "\\x1b[2J[bold]$" in captured.out


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (["--pool", "expert", "run"], "RUN run and --model exclude each other", "name either runs or models"),
        (["--pool", "expert", "--compare", "a", "b"], "--compare and --model exclude each other", "name either runs"),
        ([], "--model needs a pool", "--pool DIR; `echo-cli pool build DIR` builds one"),
        (["--pool", "expert", "--step", "0"], "--step has no effect with --model", "RUN/checkpoints/step_"),
        (["--pool", "expert", "--checkpoint", "best"], "--checkpoint has no effect", "RUN/checkpoints/step_"),
        (["--pool", "expert", "--rollouts", "0"], "--rollouts has no effect with --model", "name a RUN"),
        (["--pool", "expert", "--pass-k", "1"], "--pass-k has no effect with --model", "name a RUN"),
        (["--pool", "expert", "--json", "--csv"], "exclude each other", "one of them"),
        (["--pool", "expert", "--output", "p.pdf"], "not a .png, .svg or .csv", "together"),
        (["--pool", "expert", "--pool", "expert"], "two pools are named expert", "rename"),
        (["--pool", "nowhere"], "nowhere does not exist", "pool build"),
        (["--pool", "expert", "--fit-pool", "nowhere"], "nowhere does not exist", "pool build"),
        (["--pool", "expert", "--command", "rm"], "'rm' is not a command of the expert pool", "command is: cat"),
        (["--pool", "expert", "--model", "one/step_000002"], "--model one/step_000002 is given twice", "once"),
        (["--pool", "expert", "--model", "./one/step_000002/"], "is given twice", "once"),
        (["--pool", "expert", "--model", "one"], "one is not a model: it has no config.json", "a hub id such as"),
        (["--pool", "expert", "--model", "one/step_3"], "no model one/step_3: it does not exist", "tiny-machine"),
        (["--pool", "expert", "--model", "expert/manifest.json"], "manifest.json: not a folder", "tiny-base"),
        (["--pool", "expert", "--model", "/nowhere/x"], "no model /nowhere/x: it does not exist", "tiny-base"),
        (["--pool", "expert", "rollout.temperature=1"], "rollout.temperature has no effect with", "model.dtype"),
        (["--pool", "expert", "model.path=x"], "model.path has no effect with --model", "conversation.*"),
        (["--pool", "expert", "model.lora.rank=8"], "model.lora.rank has no effect with --model", "model.dtype"),
        (["--pool", "expert", "model.dtype=float32"], "no effect: no --model is a Hugging Face model", "omit it"),
        (["--pool", "expert", "conversation.system=x"], "no effect: no --model is a Hugging Face model", "omit it"),
        (["--pool", "expert", "--config", "toyy"], "no config named 'toyy'", "did you mean 'toy'?"),
        (["--pool", "expert", "--device", "tpu"], "'device' is \"tpu\"", ""),
    ],
)
def test_what_does_not_go_together_is_one_line(
    words: list[str],
    message: str,
    tip: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    assert main(["eval-heldout", "--model", "one/step_000002", *words]) == 2
    captured = capsys.readouterr()
    found = error_of(captured.err)
    assert captured.out == "" and message in found[0] and tip in found[1]


@pytest.mark.parametrize("words", [["--config", "toy"], ["--fit-pool", "fit"]])
def test_what_is_for_models_is_refused_without_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval-heldout", "run", *words]) == 2
    assert f"{words[0]} has no effect without --model" in error_of(capsys.readouterr().err)[0]


def test_a_pool_longer_than_a_model_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = TinyModel(TinyConfig(V, hidden=32, layers=1, heads=4, max_length=8))
    save_model(model, TOKENIZER, tmp_path)
    assert main(["eval-heldout", "--model", str(tmp_path), "--pool", str(place / "expert"), "threads=1"]) == 2
    assert "tokens, the model's context is 8" in error_of(capsys.readouterr().err)[0]


# --- Which model, and how it is loaded -------------------------------------------------------------------------------


def test_the_kind_is_told_from_the_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file, text in (
        ("qwen", "config.json", '{"model_type": "qwen3"}'),
        ("adapter", "adapter_config.json", "{}"),
        ("broken", "config.json", "{"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    assert [kind_of(path) for path in ("qwen", str(tmp_path / "adapter"))] == ["hf", "hf"]
    assert [kind_of(path) for path in ("gpt2", "Qwen/Qwen3-0.6B", RANDOM_QWEN3)] == ["hf", "hf", "hf"]
    assert [kind_of(path) for path in ("tiny-base", "tiny-machine", str(place / "other"))] == ["tiny"] * 3
    with pytest.raises(EchoError, match=r"broken/config.json: not JSON"):
        kind_of("broken")
    # A hub id whose first part is a local folder is a mistyped path.
    with pytest.raises(EchoError, match="no model qwen/x: it does not exist"):
        kind_of("qwen/x")


def test_a_run_is_not_a_model(finished: Path) -> None:
    with pytest.raises(EchoError, match="is a run, not a model") as raised:
        kind_of(str(finished))
    assert str(finished / "checkpoints" / "step_000004") in (raised.value.tip or "")


def test_a_model_that_is_named_may_be_fetched(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave = []

    def refuse(config: Config) -> None:
        leave.append(config.model.fetch)
        raise EchoError("nothing is loaded here", "none")

    monkeypatch.setattr(model_evaluation, "open_policy", refuse)
    assert main(["eval-heldout", "--model", "some/model", "--pool", str(place / "expert")]) != 0
    assert leave == ["named"] and "nothing is loaded here" in capsys.readouterr().err


def test_labels_are_the_shortest_ends_of_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    paths = ["one/step_000002", "two/step_000002", "other", "org/other", "tiny-base", "."]
    shutil.copy(place / "other" / "config.json", place / "config.json")
    labels = [contender.label for contender in contenders(paths, {"tiny-base"})]
    (place / "config.json").unlink()
    ends = ["one/step_000002", "two/step_000002", f"{place.name}/other", "org/other", "tiny-base (model)", place.name]
    assert labels == ends


def test_how_a_model_is_loaded_comes_from_the_config(tmp_path: Path) -> None:
    hf, tiny = NamedModel("q", "Qwen/Qwen3-0.6B", "hf"), NamedModel("t", "tiny-base", "tiny")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {kind: hf, path: x/y, dtype: bfloat16, lora: {rank: 4}}\nconversation: {system: be brief}\n"
        "sampler: {kind: openai, url: 'http://h/v1', model: m, sync: vllm-lora, weights: w}\n"
    )
    base = loading_config(str(file), ["model.attention=eager", "optim.token_budget=77", "device=cpu"], [tiny, hf])
    loaded = hf.config(base)
    assert loaded.model == ModelConfig(kind="hf", path="Qwen/Qwen3-0.6B", dtype="bfloat16", attention="eager")
    assert loaded.conversation.system == "be brief" and loaded.sampler.kind == "torch"
    assert (loaded.optim.token_budget, loaded.device) == (77, "cpu")
    built_in = tiny.config(base)
    assert built_in.model == ModelConfig() and built_in.conversation == ConversationConfig()
    assert type(built_in).model_validate_json(built_in.model_dump_json(), strict=True) == built_in
    assert type(loaded).model_validate_json(loaded.model_dump_json(), strict=True) == loaded
    assert loading_config(None, ["threads=3"], [tiny]) == load_config(find_config("toy"), ["threads=3"])
    with pytest.raises(EchoError, match=r"'model\.dtype' is"):
        loading_config(None, ["model.dtype=float8"], [hf])


# --- A Hugging Face model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "qwen"
    folder.mkdir()
    make_random_qwen3(folder, 0)
    return folder


def test_a_hugging_face_model_is_measured_as_transformers_computes_it(
    evaluate: Evaluate, place: Path, qwen: Path
) -> None:
    from transformers import AutoModelForCausalLM

    result = evaluate(["other", str(qwen)], "model.dtype=float32")
    other, found = result["models"]
    assert (other["kind"], found["kind"], found["same_tokens"]) == ("tiny", "hf", False)
    chosen = NamedModel("qwen", str(qwen), "hf")
    config = chosen.config(loading_config(None, [], [chosen]))
    renderer = load_renderer(config)
    pool = load_pool(place / "expert", renderer)
    dense = AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32).eval()
    nats = []
    for trajectory in pool.trajectories:  # every output is new, so that every environment token counts
        ids = torch.tensor([trajectory.token_ids])
        with torch.no_grad():
            logprobs = dense(ids).logits[0, :-1].double().log_softmax(-1)
        for number, role in enumerate(trajectory.roles[1:]):
            if role == Role.ENV_OUTPUT:
                nats.append(-float(logprobs[number, ids[0, number + 1]]))
    entry = headlines(result)["qwen"]
    assert entry["tokens"] == len(nats) and entry["bytes"] == headlines(result)["other"]["bytes"]
    assert entry["env_ce"]["value"] == pytest.approx(sum(nats) / len(nats), abs=1e-5)
    (difference,) = result["differences"]
    assert difference["env_ce"] is None
