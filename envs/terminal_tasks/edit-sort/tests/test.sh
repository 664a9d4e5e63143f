#!/bin/bash
# The lines are in order.
reward=0
cmp -s names.txt "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
