#!/bin/bash
# Only data/a/two has no bytes.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "data/a/two" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
