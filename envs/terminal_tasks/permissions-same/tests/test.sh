#!/bin/bash
# The mode of a.sh is 741.
reward=0
[ "$(stat -c %a b.sh)" = 741 ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
