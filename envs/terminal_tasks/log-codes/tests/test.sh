#!/bin/bash
# Each code is there once.
reward=0
cmp -s codes.txt "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
