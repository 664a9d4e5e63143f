#!/bin/bash
# Three lines and four lines.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "7" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
