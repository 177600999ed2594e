#!/usr/bin/env bash
# Runs all tests. Arguments go to `go test`: test/run.sh ./internal/guest/... -run Journal
set -euo pipefail
cd "$(dirname "$0")/.."

make --no-print-directory build

# The CLI is fetched once and shared by all tests.
export SANDLOT_TEST_TOOLKIT="${SANDLOT_TEST_TOOLKIT:-${XDG_CACHE_HOME:-$HOME/.cache}/sandlot-test/toolkit}"
export SANDLOT_TEST_BIN="$PWD/bin/sandlot"
export SANDLOT_TEST_GUEST="$PWD/cmd/sandlot/guestbin/sandlot-guest"
mkdir -p "$SANDLOT_TEST_TOOLKIT"
SANDLOT_TEST_CLAUDE=$(go run ./test/toolkit "$SANDLOT_TEST_TOOLKIT")
export SANDLOT_TEST_CLAUDE

# These must not be skipped where everything can be installed: a skip that hides a promise is a failure.
if [ "${CI:-}" = true ]; then
	export SANDLOT_MUST_RUN="${SANDLOT_MUST_RUN:-all}"
fi

node --test web/test/*.test.mjs

race=()
if command -v gcc >/dev/null 2>&1; then
	race=(-race)
	export CGO_ENABLED=1
else
	echo "no gcc: the race detector is off"
fi
if [ $# -eq 0 ]; then set -- ./...; fi
exec go test "${race[@]}" -timeout 40m "$@"
