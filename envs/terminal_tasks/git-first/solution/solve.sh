#!/bin/bash
git log --format=%s
git log --format=%s | tail -n 1 > answer.txt
cat answer.txt
