#!/bin/bash
cat people.csv
grep -c ',Rome$' people.csv > answer.txt
cat answer.txt
