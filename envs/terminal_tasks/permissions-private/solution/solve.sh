#!/bin/bash
ls -l
chmod 600 key.pem
ls -l
