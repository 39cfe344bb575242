#!/bin/bash
# What a reader's shell finds as `clipserve` while a page is tried. `clipserve serve` returns once the server is
# ready, in place of the one before it, as if it had been stopped and this one started in its terminal. It ends
# by itself if its tests do without ending it.
set -euo pipefail
if [[ ${1-} != serve ]]; then
    exec "$DOCS_CLIPSERVE" "$@"
fi
if [[ -e $DOCS_PID ]]; then
    kill "$(<"$DOCS_PID")"
    tail --pid "$(<"$DOCS_PID")" --follow /dev/null
fi
setsid timeout 300 "$DOCS_CLIPSERVE" "$@" 2> "$DOCS_LOG" > /dev/null < /dev/null &
echo $! > "$DOCS_PID"
until curl --silent --fail-with-body --output /dev/null "http://127.0.0.1:$CLIPSERVE_PORT/health/ready"; do
    kill -0 $! || { cat "$DOCS_LOG" >&2; exit 1; }
    sleep 0.05
done
