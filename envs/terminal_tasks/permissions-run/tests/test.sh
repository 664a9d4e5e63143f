#!/bin/bash
# The mode is 755.
reward=0
[ "$(stat -c %a run.sh)" = 755 ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
