#!/bin/bash
cat essay.txt
sed -i 's/colour/color/g' essay.txt
cat essay.txt
