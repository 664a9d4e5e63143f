#!/bin/bash
# A lamp costs 25.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "lamp" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
