#!/bin/bash
cat date.txt
