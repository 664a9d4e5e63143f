#!/bin/bash
ls -l data
ls -S data | head -n 1 > answer.txt
cat answer.txt
