#!/bin/bash
# The mode is 750.
reward=0
[ "$(stat -c %a shared)" = 750 ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
