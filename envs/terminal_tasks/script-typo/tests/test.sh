#!/bin/bash
# greet.sh prints Hello, Ada.
reward=0
[ "$(bash greet.sh Ada 2>&1)" = "Hello, Ada" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
