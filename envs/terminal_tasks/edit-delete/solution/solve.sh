#!/bin/bash
cat settings.ini
sed -i '/^#/d' settings.ini
cat settings.ini
