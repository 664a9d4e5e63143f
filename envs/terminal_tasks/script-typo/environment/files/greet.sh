#!/bin/bash
ecko "Hello, $1"
