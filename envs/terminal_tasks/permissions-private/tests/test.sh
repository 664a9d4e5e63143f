#!/bin/bash
# The mode is 600.
reward=0
[ "$(stat -c %a key.pem)" = 600 ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
