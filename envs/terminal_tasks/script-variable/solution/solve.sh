#!/bin/bash
cat double.sh
sed -i 's/numer)/number)/' double.sh
bash double.sh 21
