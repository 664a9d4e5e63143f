#!/bin/bash
# Three lines are about db.
reward=0
cmp -s db.log "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
