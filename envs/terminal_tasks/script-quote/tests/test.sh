#!/bin/bash
# bye.sh prints Bye.
reward=0
[ "$(bash bye.sh 2>&1)" = "Bye" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
