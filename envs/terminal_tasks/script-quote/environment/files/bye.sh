#!/bin/bash
echo "Bye
