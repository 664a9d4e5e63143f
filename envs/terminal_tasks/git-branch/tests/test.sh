#!/bin/bash
# The branch is winter.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "winter" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
