#!/bin/bash
cat job.log
grep -o 'code=[0-9]*' job.log | sort -u > codes.txt
cat codes.txt
