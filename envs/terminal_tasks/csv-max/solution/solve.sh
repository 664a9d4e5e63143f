#!/bin/bash
cat prices.csv
tail -n +2 prices.csv | sort -t, -k2 -n | tail -n 1 | cut -d, -f1 > answer.txt
cat answer.txt
