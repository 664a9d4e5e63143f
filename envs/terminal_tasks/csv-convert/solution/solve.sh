#!/bin/bash
cat table.csv
sed -i 's/;/,/g' table.csv
cat table.csv
