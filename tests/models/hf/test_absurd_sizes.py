"""Model folders that describe more than they hold are refused before memory is allocated, in a process with 512 MiB."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import limited_loading
import pytest
import torch
from hf_models import SIZES, make_qwen3
from others_models import change_json

from echo_cli.models.architecture import model_folder
from echo_cli.models.hf.random_qwen3 import make_random_qwen3

MIB = 512
HUGE = 10**7

Case = dict[str, Any]


def _case(folder: Path, *, kind: str = "hf", only_check: bool = False, **model: Any) -> Case:
    return {"folder": str(folder), "model": {"kind": kind, **model}, "only_check": only_check}


def _folders(place: Path) -> dict[str, tuple[Case, str]]:
    """Write the folders, and return the cases by name with a part of the expected message; the first loads."""
    from transformers import GPTJConfig, GPTJForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    made = place / "made"
    made.mkdir()
    make_random_qwen3(made, 0)

    def changed(name: str, source: Path = made, file: str = "config.json", **changes: Any) -> Path:
        folder = shutil.copytree(source, place / name)
        change_json(folder / file, **changes)
        return folder

    cases = {"whole": (_case(made), "loaded")}
    sizes = {
        "layers": ({"num_hidden_layers": HUGE, "layer_types": None}, "num_hidden_layers is 10000000"),
        "many layers": (
            {"num_hidden_layers": 200, "layer_types": None},
            "of the model's tensors, such as model.layers",
        ),
        "width": ({"hidden_size": 10**6}, "3 layers of width 1000000 have more"),
        "absurd width": ({"hidden_size": 10**9}, "hidden_size is 1000000000"),
        "vocabulary": ({"vocab_size": 2 * 10**6}, "has the shape [1123, 128], not [2000000, 128]"),
        "mlp": ({"intermediate_size": 2 * 10**6}, "not [128, 2000000]"),
        "heads": ({"num_attention_heads": HUGE}, "num_attention_heads is 10000000"),
        "head": ({"head_dim": 10**9}, "head_dim is 1000000000"),
        "rotation": ({"partial_rotary_factor": 1e9}, "partial_rotary_factor is 1000000000"),
        "part": ({"text_config": {"num_layers": 1e300}}, "num_layers is 1e+300"),
    }
    for name, (changes, said) in sizes.items():
        folder = changed(name, **changes)
        cases |= {f"{name}, {check}": (_case(folder, only_check=check), said) for check in (False, True)}
    scratch = changed("scratch", num_hidden_layers=2000, layer_types=None, hidden_size=10**6)
    cases["scratch"] = (_case(scratch, init="scratch"), "this machine's memory")
    cases["rank"] = (_case(made, lora={"rank": 10**9}), "model.lora.rank is 1000000000")

    shape = {**SIZES, "head_dim": 8, "moe_intermediate_size": 8, "num_experts": 4}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape)).save_pretrained(place / "moe")
    cases["experts"] = (_case(changed("experts", place / "moe", num_experts=HUGE)), "num_experts is 10000000")
    GPTJForCausalLM(
        GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, n_positions=64)
    ).save_pretrained(place / "gptj")
    cases["tables"] = (_case(changed("tables", place / "gptj", n_positions=10**9), attention="eager"), "tables of")

    base = make_qwen3(place / "base")
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 10**9}
    for name, changes in {"adapter": {}, "pattern": {"r": 2, "rank_pattern": {"q_proj": 10**9}}}.items():
        (place / name).mkdir()
        (place / name / "adapter_config.json").write_text(
            json.dumps({**adapter, "target_modules": ["q_proj"], **changes})
        )
        cases[name] = (_case(place / name), "its rank is not from 1 to")

    big = shutil.copytree(made, place / "big")
    os.truncate(big / "tokenizer.json", 2**32)  # a sparse file
    cases["tokenizer"] = (_case(big), "tokenizer.json has 4096 MiB")
    header = shutil.copytree(made, place / "header")
    (header / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    cases["header"] = (_case(header), "its header has 1099511627776 bytes")

    for key, said in {"layers": "layers is above", "max_length": "max_length above", "hidden": "the shape"}.items():
        folder = changed(f"tiny {key}", model_folder("tiny-base"), **{key: 10**8})
        cases[f"tiny {key}"] = (_case(folder, kind="tiny"), said)
    return cases


@pytest.mark.slow
def test_absurd_sizes_are_refused_before_memory_is_allocated(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        cases = _folders(tmp_path)
    words = [
        sys.executable,
        limited_loading.__file__,
        str(MIB),
        json.dumps({name: case for name, (case, _) in cases.items()}),
    ]
    path = os.pathsep.join([str(Path(limited_loading.__file__).parent), *sys.path])
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: found[name] for name, (_, said) in cases.items() if said not in found[name]} == {}
    assert all("\n" not in message and len(message) < 600 for message in found.values())
