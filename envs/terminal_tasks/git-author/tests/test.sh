#!/bin/bash
# The last commit is bob's.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "bob" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
