#!/usr/bin/env bash
# Writes the root file system of a base image with Debian's Python to FILE.tar, once: deploy/debian_root.sh FILE.tar
# `make test-images` and `make test-compose` use it in place of python:3.12-slim, so that they need no container registry.
# It needs root and Debian's debootstrap, and 1 GB of memory: on a disk, dpkg would wait for each file to be written.
set -euo pipefail
archive=$1
[ -e "$archive" ] && exit
[ "${2:-}" = mounted ] || exec unshare --mount "$0" "$archive" mounted # the mount below ends with this script
root=$(mktemp -d)
mount -t tmpfs -o size=2g,mode=755 debian "$root"
printf 'creating the base image with debootstrap (about a minute)\n' >&2
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" >"$archive.log" ||
  { tail -n 20 "$archive.log" >&2; exit 1; }
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" -cf "$archive.part" .
mv "$archive.part" "$archive"
umount "$root"
rmdir "$root"
