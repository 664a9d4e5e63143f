#!/bin/bash
cat app.log
grep -c ERROR app.log > answer.txt
cat answer.txt
