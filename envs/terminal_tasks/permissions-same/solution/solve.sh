#!/bin/bash
ls -l
chmod --reference=a.sh b.sh
ls -l
