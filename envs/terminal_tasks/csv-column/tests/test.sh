#!/bin/bash
# Four names, one on each line.
reward=0
cmp -s names.txt "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
