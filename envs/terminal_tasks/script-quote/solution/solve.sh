#!/bin/bash
cat bye.sh
sed -i 's/"Bye/"Bye"/' bye.sh
bash bye.sh
