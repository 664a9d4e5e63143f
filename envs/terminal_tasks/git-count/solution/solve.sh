#!/bin/bash
git log --oneline
git rev-list --count HEAD > answer.txt
cat answer.txt
