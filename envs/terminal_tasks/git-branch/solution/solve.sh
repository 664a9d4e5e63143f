#!/bin/bash
git branch
git branch --format='%(refname:short)' | grep -v main > answer.txt
cat answer.txt
