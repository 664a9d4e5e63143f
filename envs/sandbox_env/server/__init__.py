"""The sandbox behind OpenEnv's wire protocol. This folder alone imports `openenv`."""
