#!/bin/bash
cat greet.sh
sed -i 's/ecko/echo/' greet.sh
bash greet.sh Ada
