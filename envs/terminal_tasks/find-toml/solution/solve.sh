#!/bin/bash
find src -type f | sort
find src -name '*.toml' > answer.txt
cat answer.txt
