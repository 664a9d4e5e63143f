#!/bin/bash
# The file has its old text.
reward=0
[ "$(cat todo.txt 2> /dev/null)" = "buy milk" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
