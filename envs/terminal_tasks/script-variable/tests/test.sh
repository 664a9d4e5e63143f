#!/bin/bash
# double.sh prints 42.
reward=0
[ "$(bash double.sh 21 2>&1)" = "42" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
