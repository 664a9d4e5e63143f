#!/bin/bash
# count.sh prints 1 2 3 .
reward=0
[ "$(bash count.sh 2>&1)" = "1 2 3 " ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
