#!/bin/bash
# 10.0.0.4 has three of six lines.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "10.0.0.4" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
