"""The application that OpenEnv's tools import as `server.app:app`."""

from __future__ import annotations

from openenv.core.env_server import create_app

from sandbox_env.server.environment import Command, Output, Sandbox

SESSIONS = 16

app = create_app(Sandbox, Command, Output, env_name="sandbox_env", max_concurrent_envs=SESSIONS)
