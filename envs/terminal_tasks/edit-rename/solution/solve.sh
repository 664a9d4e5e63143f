#!/bin/bash
ls
mv report.txt report-2024.txt
ls
