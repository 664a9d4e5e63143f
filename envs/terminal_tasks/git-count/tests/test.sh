#!/bin/bash
# Three commits on main.
reward=0
[ "$(tr -d ' ' 2> /dev/null < answer.txt)" = "3" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
