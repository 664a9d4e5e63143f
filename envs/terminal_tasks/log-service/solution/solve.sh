#!/bin/bash
cat all.log
grep ' db ' all.log > db.log
cat db.log
