#!/bin/bash
# ann, bob, cid and eve.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "4" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
