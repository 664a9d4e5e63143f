#!/bin/bash
head show.sh data.txt
sed -i 's/date/data/' show.sh
bash show.sh
