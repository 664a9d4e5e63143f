#!/bin/bash
git log --format='%an %s'
git log -1 --format=%an > answer.txt
cat answer.txt
