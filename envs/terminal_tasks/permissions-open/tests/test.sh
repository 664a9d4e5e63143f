#!/bin/bash
# The mode of share/b.txt is 666.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "share/b.txt" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
