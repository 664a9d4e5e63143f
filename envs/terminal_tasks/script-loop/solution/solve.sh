#!/bin/bash
cat count.sh
echo done >> count.sh
bash count.sh
