#!/bin/bash
head a.txt b.txt
cat a.txt b.txt | wc -l > answer.txt
cat answer.txt
