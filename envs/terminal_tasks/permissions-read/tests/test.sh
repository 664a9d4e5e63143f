#!/bin/bash
# The mode is 444.
reward=0
[ "$(stat -c %a notes.txt)" = 444 ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
