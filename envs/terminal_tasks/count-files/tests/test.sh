#!/bin/bash
# Five files in four folders.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "5" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
