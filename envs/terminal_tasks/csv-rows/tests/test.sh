#!/bin/bash
# Two of four.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "2" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
