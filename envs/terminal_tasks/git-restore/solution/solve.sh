#!/bin/bash
git log --oneline
git checkout HEAD~1 -- todo.txt
cat todo.txt
