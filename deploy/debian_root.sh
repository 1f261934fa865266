#!/usr/bin/env bash
# Writes the root file system of a Debian 12 to FILE.tar, once: deploy/debian_root.sh FILE.tar [OPTION-OF-DEBOOTSTRAP...]
# Without options it is a base image with Debian's Python. `make test-images` and `make test-compose` use that in place of
# python:3.12-slim, so that they need no container registry. `make test-quickstart` asks for a Debian without Python.
# It needs root and Debian's debootstrap, and 1 GB of memory: on a disk, dpkg would wait for each file to be written.
set -euo pipefail
archive=$1
[ -e "$archive" ] && exit
[ -n "${AEIC_OWN_MOUNTS:-}" ] || AEIC_OWN_MOUNTS=1 exec unshare --mount "$0" "$@" # the mount below ends with this script
shift
[ $# -gt 0 ] || set -- --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates
root=$(mktemp -d)
mount -t tmpfs -o size=2g,mode=755 debian "$root"
printf 'creating a Debian with debootstrap (one or two minutes)\n' >&2
debootstrap "$@" bookworm "$root" >"$archive.log" || { tail -n 20 "$archive.log" >&2; exit 1; }
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" -cf "$archive.part" .
mv "$archive.part" "$archive"
umount "$root"
rmdir "$root"
