#!/bin/bash
# The last login is eve's.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "eve" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
