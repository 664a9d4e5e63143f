#!/bin/bash
find data -type f | sort
find data -type f -empty > answer.txt
cat answer.txt
