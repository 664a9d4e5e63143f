#!/bin/bash
# bee.txt has 80 bytes, the others less.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "bee.txt" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
