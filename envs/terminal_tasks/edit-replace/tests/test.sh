#!/bin/bash
# No line has colour.
reward=0
cmp -s essay.txt "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
