"""A small Qwen3 with random weights, written to a folder: a real Hugging Face model without a download.

The tokenizer is fitted on the toy terminal's output. It has Qwen's pre-tokenizer and special and added tokens, and a
chat template that writes conversations as Qwen3's does. Needs the extra `hf`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from echo_cli.models.tokenizer import TOKENIZER_FILE, fit_backend, new_backend
from toy_terminal_env.environment import world_and_tasks
from toy_terminal_env.scripted import explorer_actions, explorer_commands
from toy_terminal_env.shell import run

MAX_VOCAB_SIZE = 1536

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

# The pattern of Qwen2Tokenizer, which transformers uses whatever tokenizer.json contains.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Worlds used for nothing else, the same for every seed, so that all random models tokenise alike.
_WORLD_SEEDS = range(2_000_000, 2_000_003)
_COMMANDS = 300

_TEMPLATE = """\
{%- set first = messages[0].content if messages[0].role == 'system' %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + (first + '\\n\\n' if first is string else '') }}
    {{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}
    {{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
    {{- '{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif first is string %}
    {{- '<|im_start|>system\\n' + first + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=messages | length - 1) %}
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- set answer = content.startswith('<tool_response>') and content.endswith('</tool_response>') %}
    {%- if message.role == 'user' and not answer %}
        {%- set ns.last_query = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thinking = message.reasoning_content or '' %}
        {%- if message.reasoning_content is not string and '</think>' in content %}
            {%- set thinking = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query and (loop.last or thinking.strip('\\n')) %}
            {{- '<think>\\n' + thinking.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if content or not loop.first else '' }}
            {{- '<tool_call>\\n{\\"name\\": \\"' + call.function.name + '\\", \\"arguments\\": ' }}
            {%- set arguments = call.function.arguments %}
            {{- (arguments if arguments is string else arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' }}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' else '' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def make_random_qwen3(folder: Path, seed: int) -> None:
    """Write a model folder in the format of `from_pretrained`; the same seed writes the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    _write_tokenizer(tokenizer, folder)
    end_of_text, _, end_of_turn = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=end_of_turn,
        pad_token_id=end_of_text,
        bos_token_id=None,
        architectures=["Qwen3ForCausalLM"],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    # The files of `model.save_pretrained`, without its progress bar. The head is the embedding: it is written once.
    config.save_pretrained(folder)
    generation = GenerationConfig(eos_token_id=[end_of_turn, end_of_text], pad_token_id=end_of_text)
    generation.save_pretrained(folder)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))


def _tokenizer() -> Tokenizer:
    """Fit a byte-level BPE in Qwen's form on the toy terminal's output."""
    tokenizer = new_backend(_PIECES)
    tokenizer.normalizer = normalizers.NFC()
    fit_backend(tokenizer, _texts(), MAX_VOCAB_SIZE - len(SPECIAL_TOKENS) - len(ADDED_TOKENS))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED_TOKENS])
    return tokenizer


def _texts() -> list[str]:
    """Return questions, commands and outputs of a few worlds, and turn headers, so that their words become tokens."""
    texts = ["system\nuser\nassistant\n"] * _COMMANDS
    for world_seed in _WORLD_SEEDS:
        world, tasks = world_and_tasks(world_seed)
        texts += [f"{task.question}\n" for task in tasks.values()]
        kinds = explorer_commands(world, frozenset())
        for command in explorer_actions(kinds, _COMMANDS, random.Random(world_seed)):
            result = run(world.files, command)
            texts.append(f"$ {command}\n{result.stdout}{result.stderr}")
    return texts


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    added = {
        tokenizer.token_to_id(token): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in (*SPECIAL_TOKENS, *ADDED_TOKENS)
    }
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
