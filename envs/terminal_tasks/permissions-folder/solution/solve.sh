#!/bin/bash
ls -l
chmod 750 shared
ls -l
