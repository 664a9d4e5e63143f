#!/bin/bash
ls -l bin
find bin -type f -perm -u+x > answer.txt
cat answer.txt
