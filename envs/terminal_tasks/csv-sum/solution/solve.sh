#!/bin/bash
cat sales.csv
awk -F, 'NR > 1 {s += $2} END {print s}' sales.csv > answer.txt
cat answer.txt
