#!/bin/bash
# The only .toml file is src/b/c/pack.toml.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "src/b/c/pack.toml" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
