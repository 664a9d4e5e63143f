#!/bin/bash
number=$1
echo $((2 * numer))
