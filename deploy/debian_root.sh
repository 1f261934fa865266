#!/usr/bin/env bash
# Writes the root file system of a base image with Debian's Python to FILE.tgz, once: deploy/debian_root.sh FILE.tgz
# `make test-images` and `make test-compose` use it in place of python:3.12-slim, so that they need no container registry.
# It needs root and Debian's debootstrap.
set -euo pipefail
archive=$1
[ -e "$archive" ] && exit
root=${archive%.tgz}
printf 'creating the base image with debootstrap (about a minute)\n' >&2
[ -x "$root/usr/bin/python3" ] ||
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" >"$root.log"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" -czf "$archive.part" .
mv "$archive.part" "$archive"
rm -rf "$root"
