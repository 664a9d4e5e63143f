#!/bin/bash
cat hosts.txt
echo '10.0.0.7 backup' >> hosts.txt
cat hosts.txt
