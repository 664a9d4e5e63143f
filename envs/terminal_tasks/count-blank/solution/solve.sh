#!/bin/bash
cat notes.txt
grep -c '^$' notes.txt > answer.txt
cat answer.txt
