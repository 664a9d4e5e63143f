#!/bin/bash
cat access.log
cut -d' ' -f1 access.log | sort | uniq -c | sort -n | tail -n 1 | awk '{print $2}' > answer.txt
cat answer.txt
