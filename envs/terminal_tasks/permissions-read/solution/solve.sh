#!/bin/bash
ls -l
chmod a-w notes.txt
ls -l
