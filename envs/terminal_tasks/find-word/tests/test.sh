#!/bin/bash
# Only conf/web.ini has the word.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "conf/web.ini" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
