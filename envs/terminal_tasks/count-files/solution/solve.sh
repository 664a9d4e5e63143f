#!/bin/bash
find tree | sort
find tree -type f | wc -l > answer.txt
cat answer.txt
