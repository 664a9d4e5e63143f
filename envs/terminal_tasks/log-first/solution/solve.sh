#!/bin/bash
cat server.log
grep -m 1 ERROR server.log | cut -d' ' -f1 > answer.txt
cat answer.txt
