#!/bin/bash
# No semicolon is left.
reward=0
cmp -s table.csv "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
