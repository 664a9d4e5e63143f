#!/bin/bash
# add.sh prints 42.
reward=0
[ "$(bash add.sh 30 12 2>&1)" = "42" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
