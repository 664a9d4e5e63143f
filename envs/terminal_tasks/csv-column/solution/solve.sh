#!/bin/bash
cat people.csv
tail -n +2 people.csv | cut -d, -f2 > names.txt
cat names.txt
