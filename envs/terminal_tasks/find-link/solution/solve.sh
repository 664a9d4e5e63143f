#!/bin/bash
ls -l
readlink current > answer.txt
cat answer.txt
