#!/bin/bash
# Two, four and two words.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "8" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
