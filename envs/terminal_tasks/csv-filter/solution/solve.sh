#!/bin/bash
cat stock.csv
(head -n 1 stock.csv; grep ',0$' stock.csv) > empty.csv
cat empty.csv
