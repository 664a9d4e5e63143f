#!/bin/bash
# The line is the last one.
reward=0
cmp -s hosts.txt "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
