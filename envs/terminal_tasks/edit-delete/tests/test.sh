#!/bin/bash
# The comments are gone, the settings are not.
reward=0
cmp -s settings.ini "$(dirname "$0")/expected" && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
