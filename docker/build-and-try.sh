#!/usr/bin/env bash
# Builds an image with buildah on a bare Debian, starts it, and checks what it promises. Needs root, and:
#   apt-get install buildah debootstrap curl
#
#   docker/build-and-try.sh [cpu|gpu]    gpu: checks only that it does not start, and says why, without a GPU
#
# SUITE    Debian release of the base, made by debootstrap      (bookworm)
# MIRROR   where debootstrap fetches it                         (debootstrap's own choice)
# BASE     an image to build on instead of one made here
# DRIVER   buildah's storage driver                             (overlay; vfs works everywhere and is slower)
# OUTPUT   write the image to this OCI archive as well
#
# pip's index settings and the CA bundle of this machine are lent to the build as secrets. Everything that is
# made lies in one temporary folder, which is gone at the end.
set -euo pipefail

target=${1:-cpu}
repository=$(cd "$(dirname "$0")/.." && pwd)
image=clipserve:$target
work=$(mktemp -d "${TMPDIR:-/tmp}/clipserve-image.XXXXXX")
container=
running=

main() {
    check_tools
    local base=${BASE:-localhost/debian-bare}
    [ -n "${BASE:-}" ] || make_base "$base"
    build "$base"
    [ -z "${OUTPUT:-}" ] || buildah_ push "$image" "oci-archive:$OUTPUT:$image"
    container=$(buildah_ from "$image")
    report_size
    if [ "$target" = cpu ]; then
        local runtime
        for runtime in onnxruntime openvino auto; do
            start "$runtime"
            try
            stop
        done
        check_writes
    else
        refuse
    fi
    say "all is well"
}

check_tools() {
    local tool
    for tool in buildah debootstrap curl python3; do
        command -v "$tool" > /dev/null || die "$tool is missing; apt-get install buildah debootstrap curl python3"
    done
    [ "$(id -u)" = 0 ] || die "must be root: debootstrap and chroot need it"
}

make_base() {
    local root=$work/root
    say "debootstrap ${SUITE:=bookworm}"
    timeout 900 debootstrap --variant=minbase "$SUITE" "$root" ${MIRROR:+"$MIRROR"} > "$work/debootstrap.log" \
        || { tail -n 20 "$work/debootstrap.log"; die "debootstrap failed"; }
    # What Debian's own slim images leave out as well.
    find "$root/var/cache/apt" "$root/var/lib/apt/lists" "$root/usr/share/locale" "$root/usr/share/man" -type f -delete
    find "$root/usr/share/doc" -type f ! -name copyright -delete
    local scratch
    scratch=$(buildah_ from scratch)
    buildah_ add --quiet "$scratch" "$root" / > /dev/null
    buildah_ commit --quiet --rm "$scratch" "$1" > /dev/null
    rm -rf "$root"
}

build() {
    local bundle=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}} secrets=()
    write_pip_conf > "$work/pip.conf"
    if [ -r "$bundle" ]; then
        echo "cert = /run/secrets/ca.pem" >> "$work/pip.conf"
        secrets+=(--secret "id=ca.pem,src=$bundle")
    fi
    say "build $image"
    # Only Docker's format has a health check.
    timeout 1800 "${buildah[@]}" bud --isolation chroot --network host --format docker \
        --target "$target" --tag "$image" --build-arg "BASE=$1" \
        --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repository/pyproject.toml")" \
        --build-arg "REVISION=$(git -C "$repository" rev-parse HEAD 2> /dev/null || echo unknown)" \
        --secret "id=pip.conf,src=$work/pip.conf" "${secrets[@]}" \
        "$repository" > "$work/build.log" 2>&1 || { tail -n 40 "$work/build.log"; die "the build failed"; }
}

# The indexes and timeouts that pip uses here; folders of this machine would mean nothing in the build.
write_pip_conf() {
    echo "[global]"
    python3 -m pip config list 2> /dev/null | grep -v file: \
        | sed -nE "s/^[^.]+\.((extra-)?index-url|trusted-host|(default-)?timeout)='(.*)'$/\1 = \4/p" \
        | sed 's/^default-//' | sort -u -t= -k1,1 || true
}

report_size() {
    local root size model
    root=$(buildah_ mount "$container")
    size=$(megabytes "$root")
    model=$(megabytes "$root"/opt/clipserve/lib/python3*/site-packages/models/shapes/files)
    say "size: $size MB, of which /opt/clipserve $(megabytes "$root/opt/clipserve") MB and the embedded model $model MB"
    du --summarize --block-size=1MB "$root"/opt/clipserve/lib/python3*/site-packages/* \
        | sort --numeric-sort --reverse | sed -n '1,8s|/.*/|  |p'
    ! find "$root/opt/clipserve" -type d \( -name torch -o -name pip \) | grep . || die "torch or pip is inside"
    ! chroot "$root" sh -c 'command -v cc gcc pip pip3' || die "a compiler or pip is inside"
    [ "$target" = gpu ] || [ $((size - model)) -le 450 ] || die "over 450 MB without the model"
}

start() {
    local command
    command=$(config '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}{{range .OCIv1.Config.Cmd}}{{.}} {{end}}')
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    say "start: $command (CLIPSERVE_RUNTIME=$1)"
    [ -e "$work/started" ] || touch "$work/started"
    # shellcheck disable=SC2086 # the command's words
    CLIPSERVE_RUNTIME=$1 run_in_container $command > "$work/server.log" 2>&1 &
    running=$!
    local began=${EPOCHREALTIME/./}
    until curl --silent --fail --max-time 2 "http://127.0.0.1:$port/health/ready" > "$work/ready.json"; do
        if [ $((${EPOCHREALTIME/./} - began)) -gt 60000000 ] || ! kill -0 "$running" 2> /dev/null; then
            tail -n 20 "$work/server.log"
            die "the server is not ready"
        fi
        sleep 0.1
    done
    say "ready after $(((${EPOCHREALTIME/./} - began) / 1000)) ms: $(cat "$work/ready.json")"
}

try() {
    local answer healthcheck user
    user=$(stat --format %u "/proc/$(innermost "$running")")
    [ "$user" = 10001 ] || die "the server runs as user $user"

    answer=$(curl --silent --show-error --fail-with-body --max-time 10 "http://127.0.0.1:$port/classify" \
        -F "image=@$repository/samples/red-circle.png" -F "labels=red circle" -F "labels=blue square") || die "$answer"
    say "classify: $answer"
    [ "$(python3 -c 'import json, sys; print(json.load(sys.stdin)["results"][0]["predictions"][0]["label"])' \
        <<< "$answer")" = "red circle" ] || die "the wrong label won"

    read -r _ healthcheck <<< "$(config '{{range .Docker.Config.Healthcheck.Test}}{{.}} {{end}}')"
    # shellcheck disable=SC2086 # the command's words
    run_in_container $healthcheck || die "the health check fails on a server that is ready"

    run_in_container clipserve embed --help > /dev/null || die "clipserve embed does not start"
    run_in_container python3 -c 'import redis, opentelemetry.exporter.otlp.proto.http.trace_exporter' \
        || die "an extra is missing"
    [[ $(run_in_container clipserve embed --text cat 2>&1) == *bulk* ]] || die "embed does not tell what it lacks"
}

stop() {
    local status=0
    kill -TERM "$(innermost "$running")"
    timeout 30 tail --pid="$running" -f /dev/null || die "the server does not stop"
    wait "$running" || status=$?
    running=
    [ "$status" = 0 ] || die "SIGTERM made the server exit with $status"
    say "SIGTERM: exit status 0"
}

# Silence here would mean a GPU image that serves from the CPU.
refuse() {
    local status=0
    port=0
    run_in_container timeout 60 clipserve serve > "$work/server.log" 2>&1 || status=$?
    [ "$status" = 1 ] || die "without a GPU it should exit with 1, not $status: $(tail -n 3 "$work/server.log")"
    say "without a GPU: $(grep --max-count 1 CRITICAL "$work/server.log")"
}

# A root file system that is mounted read-only is no hindrance if nothing is written outside the volume.
check_writes() {
    local root written
    root=$(buildah_ mount "$container")
    written=$(find "$root" -xdev -uid 10001 -newer "$work/started" ! -path "$root/var/lib/clipserve*")
    [ -z "$written" ] || die "the server wrote outside its volume: $written"
}

run_in_container() {
    "${buildah[@]}" run --isolation chroot --network host --env "CLIPSERVE_PORT=$port" \
        --env "CLIPSERVE_RUNTIME=${CLIPSERVE_RUNTIME:-auto}" "$container" -- "$@"
}

config() {
    buildah_ inspect --type image --format "$1" "$image"
}

# The process that buildah started at the end of a chain of its own.
innermost() {
    local process=$1 child
    while child=$(pgrep --oldest --parent "$process") && [ -n "$child" ]; do process=$child; done
    echo "$process"
}

megabytes() {
    du --summarize --block-size=1MB "$1" | cut -f 1
}

clean_up() {
    if [ -n "$running" ]; then
        kill -KILL "$(innermost "$running")" 2> /dev/null || true
        wait "$running" 2> /dev/null || true
    fi
    buildah_ umount --all > /dev/null 2>&1 || true
    buildah_ rm --all > /dev/null 2>&1 || true
    umount "$work/storage/overlay" 2> /dev/null || true
    rm -rf "$work"
}

say() { echo "── $*"; }
die() { echo "build-and-try: $*" >&2; exit 1; }
buildah_() { "${buildah[@]}" "$@"; }

buildah=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver "${DRIVER:-overlay}")
trap clean_up EXIT
main
