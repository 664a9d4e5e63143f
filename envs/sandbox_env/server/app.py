"""The application that OpenEnv's tools import as `server.app:app`.

The environment variables `SANDBOX_ISOLATION`, `ECHO_SERVER_TOKEN` and `ECHO_SERVER_HOSTS` set its options. Without a
token in `ECHO_SERVER_TOKEN`, each process makes its own and prints it.
"""

from __future__ import annotations

import sys

from sandbox_env.server.serve import make_app, notice, options
from toy_terminal_env.server.process import application_access

_isolation = options([]).isolation
print(notice(_isolation), file=sys.stderr)
app = make_app(_isolation, application_access())
