"""The `hf` extra: transformers, peft and huggingface_hub, imported only where a config asks for their models."""

from __future__ import annotations

import importlib.util

from echo_cli.errors import EchoError


def require_hf(what: str = "model.kind: hf") -> None:
    """Make sure that the extra is here, and that its libraries leave the terminal to us.

    Args:
        what: what needs it, for the message.

    Raises:
        EchoError: a library of it is not installed.
    """
    for name in ("transformers", "peft", "huggingface_hub"):
        if importlib.util.find_spec(name) is None:
            raise EchoError(f"{what} needs {name}, which is not installed", "pip install 'echo-cli[hf]'")
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
