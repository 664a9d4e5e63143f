#!/bin/bash
# The last commit changed plan.txt.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "plan.txt" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
