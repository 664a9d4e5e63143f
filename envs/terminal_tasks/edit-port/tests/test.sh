#!/bin/bash
# Only the port has changed.
reward=0
cmp -s app.conf "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
