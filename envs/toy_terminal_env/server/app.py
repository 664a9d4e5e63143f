"""The application that OpenEnv's tools start: `uvicorn toy_terminal_env.server.app:app`.

The environment variables `MAX_CONCURRENT_ENVS` and `MAX_TURNS` set its options.
"""

from __future__ import annotations

from toy_terminal_env.server.serve import make_app, options

_defaults = options([])
app = make_app(_defaults.max_sessions, _defaults.max_turns)
