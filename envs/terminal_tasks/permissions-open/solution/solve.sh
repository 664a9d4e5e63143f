#!/bin/bash
ls -l share
find share -type f -perm -o+w > answer.txt
cat answer.txt
