#!/bin/bash
# The link is made by the Dockerfile.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "release-2" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
