#!/bin/bash
# show.sh prints blue sky.
reward=0
[ "$(bash show.sh 2>&1)" = "blue sky" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
