#!/bin/bash
# The first of two errors is at 09:30.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "09:30" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
