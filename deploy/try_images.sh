#!/usr/bin/env bash
# Builds both images without a Docker engine, runs them and sends a picture through them: `make test-images`.
# It needs root and Debian's buildah and debootstrap. debootstrap makes the base image with Debian's Python, so that no
# container registry is needed; `docker build` uses python:3.12-slim. `make test-compose` also tests Docker's network,
# volumes, read-only roots and capabilities. Neither tests a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-out/images}
mkdir -p "$work"
work=$(realpath "$work")
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
b() { buildah --root "$work/store" --runroot "$work/run" "$@"; }
say() { printf '%s\n' "$*" >&2; }

if ! b inspect --type image localhost/debian-python >/dev/null 2>&1; then
  deploy/debian_root.sh "$work/root.tar"
  base=$(b from scratch)
  b add -q "$base" "$work/root.tar" / >/dev/null
  b commit -q --rm "$base" localhost/debian-python >/dev/null
fi

# A build behind a proxy or a mirror needs the host's own settings for pip.
share=()
for path in /etc/pip.conf /etc/xdg/pip /etc/ssl/certs ${PIP_FIND_LINKS:-}; do
  [ -e "$path" ] && share+=(-v "$path:$path:ro")
done
while IFS= read -r name; do share+=(--env "$name"); done < <(env | cut -d= -f1 | grep -E '^(PIP|SSL)_|_(proxy|PROXY)$' || true)
for side in edge cloud; do
  say "building aeic-$side"
  b bud --format docker --network host "${share[@]}" --build-arg BASE=localhost/debian-python \
    -f "deploy/$side.Dockerfile" -t "aeic-$side" . >"$work/build-$side.log" 2>&1 || { tail -20 "$work/build-$side.log"; exit 1; }
done

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
edge_port=$(port) cloud_port=$(port) grpc_port=$(port)
cloud=$(b from localhost/aeic-cloud) edge=$(b from localhost/aeic-edge)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait || true
  b rm "$cloud" "$edge" >/dev/null
}
trap cleanup EXIT
start() { # container, log, program, settings...
  local container=$1 log=$2 program=$3
  shift 3
  b run "$@" "$container" -- sh -c "id -u >&2; exec python -m $program" >"$work/$log" 2>&1 &
  pids+=($!)
}
start "$cloud" cloud.log cloud_decoder --env AEIC_CLOUD_HOST=127.0.0.1 --env "AEIC_CLOUD_PORT=$cloud_port" \
  --env "AEIC_CLOUD_GRPC_PORT=$grpc_port" --env AEIC_CLOUD_DEVICE=onnx
start "$edge" edge.log edge_encoder --env AEIC_EDGE_HOST=127.0.0.1 --env "AEIC_EDGE_PORT=$edge_port" \
  --env "AEIC_EDGE_CLOUD_ADDRESS=127.0.0.1:$grpc_port" --env AEIC_EDGE_SOURCE_ID=image
for url in "http://127.0.0.1:$cloud_port/readyz" "http://127.0.0.1:$edge_port/readyz"; do
  for _ in $(seq 120); do curl -sf "$url" >/dev/null && break || sleep 0.5; done
  curl -sf "$url" >/dev/null || { tail -20 "$work"/*.log; exit 1; }
done
id=$(curl -sf --data-binary @examples/owl.jpg "http://127.0.0.1:$edge_port/v1/frames?wait=delivered" |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
bytes=$(curl -sf "http://127.0.0.1:$cloud_port/v1/frames/$id/image?wait=30" | wc -c)
users=$(head -qn1 "$work/cloud.log" "$work/edge.log" | sort -u | tr '\n' ' ')
healthy=$(b inspect --type image --format '{{.Docker.Config.Healthcheck.Test}}' localhost/aeic-cloud | head -c 40)
size() { b images --format '{{.Size}}' "localhost/aeic-$1" | head -n1; }
printf '{"bench": "images", "edge": "%s", "cloud": "%s", "user": "%s", "healthcheck": "%s", "picture_bytes": %d}\n' \
  "$(size edge)" "$(size cloud)" "${users% }" "$healthy" "$bytes"
[ "$users" = "10001 " ] && [ "$bytes" -gt 10000 ]
