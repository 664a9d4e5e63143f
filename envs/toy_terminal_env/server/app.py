"""The application that OpenEnv's tools start: `uvicorn toy_terminal_env.server.app:app`.

The environment variables `MAX_CONCURRENT_ENVS`, `MAX_TURNS`, `ECHO_SERVER_TOKEN` and `ECHO_SERVER_HOSTS` set its
options. Without a token in `ECHO_SERVER_TOKEN`, each process makes its own and prints it.
"""

from __future__ import annotations

from toy_terminal_env.server.process import application_access
from toy_terminal_env.server.serve import make_app, options

_defaults = options([])
app = make_app(_defaults.max_sessions, _defaults.max_turns, application_access())
