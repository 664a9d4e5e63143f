#!/bin/bash
cat auth.log
grep login auth.log | tail -n 1 | cut -d' ' -f3 > answer.txt
cat answer.txt
