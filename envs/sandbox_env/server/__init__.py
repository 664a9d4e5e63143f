"""The sandbox behind OpenEnv's wire protocol. Only this folder imports `openenv`."""
