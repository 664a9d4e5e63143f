#!/bin/bash
# It is open the shop.
reward=0
[ "$(cat answer.txt 2> /dev/null)" = "open the shop" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
