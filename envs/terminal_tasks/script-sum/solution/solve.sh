#!/bin/bash
cat add.sh
sed -i 's/ - / + /' add.sh
bash add.sh 30 12
