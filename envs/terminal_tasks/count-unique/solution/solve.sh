#!/bin/bash
cat visitors.txt
sort -u visitors.txt | wc -l > answer.txt
cat answer.txt
