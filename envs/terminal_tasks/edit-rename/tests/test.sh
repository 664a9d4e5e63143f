#!/bin/bash
# The file has its new name and its old text.
reward=0
[ ! -e report.txt ] && [ "$(cat report-2024.txt 2> /dev/null)" = "sales rose" ] && reward=1
echo $reward > "${LOGS_DIR:-/logs/verifier}/reward.txt"
