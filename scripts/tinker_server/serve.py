"""Start SkyRL's Tinker server on 127.0.0.1 with this interpreter. Usage: serve.py --base-model DIR --port N [options]

All options but `--port` are SkyRL's own (`skyrl.tinker.config.EngineConfig`). Three things differ from
`uv run -m skyrl.tinker.api`: it listens on the loopback device only, its engine is started with this interpreter
instead of `uv run`, and typing_extensions provides TypedDict, which pydantic needs before Python 3.12.
"""

from __future__ import annotations

import argparse
import sys
import typing

import typing_extensions

ENGINE = "--engine"


def main() -> None:
    typing.TypedDict = typing_extensions.TypedDict  # type: ignore[attr-defined]
    if ENGINE in sys.argv:
        sys.argv.remove(ENGINE)
        from skyrl.tinker.engine import main as run_engine

        run_engine()
        return
    import uvicorn
    from skyrl.tinker import api
    from skyrl.tinker.config import EngineConfig, add_model, config_to_argv

    parser = argparse.ArgumentParser(description="SkyRL's Tinker server on 127.0.0.1")
    add_model(parser, EngineConfig)
    parser.add_argument("--port", type=int, required=True)
    args = vars(parser.parse_args())
    port = args.pop("port")
    api.app.state.engine_config = EngineConfig.model_validate(args)
    api._build_uv_run_cmd_engine = lambda _, config: [sys.executable, __file__, ENGINE, *config_to_argv(config)]
    uvicorn.run(api.app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
