#!/bin/bash
cat access.log
grep -c ' 500$' access.log > answer.txt
cat answer.txt
