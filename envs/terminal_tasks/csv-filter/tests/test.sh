#!/bin/bash
# The header and two rows.
reward=0
cmp -s empty.csv "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
