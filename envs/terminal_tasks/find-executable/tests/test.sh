#!/bin/bash
# Only bin/beta has the mode 755.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "bin/beta" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
