#!/bin/bash
cat names.txt
sort -o names.txt names.txt
cat names.txt
