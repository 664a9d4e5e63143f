#!/bin/bash
head conf/*
grep -rl timeout conf > answer.txt
cat answer.txt
