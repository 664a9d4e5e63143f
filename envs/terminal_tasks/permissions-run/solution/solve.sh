#!/bin/bash
ls -l
chmod +x run.sh
ls -l
