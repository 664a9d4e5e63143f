#!/bin/bash
git log --oneline
git show --name-only --format= HEAD > answer.txt
cat answer.txt
