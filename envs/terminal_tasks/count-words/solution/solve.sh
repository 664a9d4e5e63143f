#!/bin/bash
cat letter.txt
wc -w < letter.txt > answer.txt
cat answer.txt
