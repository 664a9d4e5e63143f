#!/bin/bash
# 12 + 30 + 7.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "49" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
