#!/usr/bin/env bash
# Runs all linters. Each is a Go module at a pinned version; the first run builds them.
set -euo pipefail
cd "$(dirname "$0")/.."

bad=$(gofmt -l $(git ls-files '*.go'))
if [ -n "$bad" ]; then
	echo "not formatted (run gofmt -w):" $bad >&2
	exit 1
fi
go vet ./...
go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run
go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

# govulncheck needs its data base, which a closed network doesn't have.
log=$(mktemp)
if ! go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./... >"$log" 2>&1; then
	if grep -qiE 'no such host|dial tcp|connection refused|i/o timeout|fetching vulnerabilities' "$log"; then
		echo "govulncheck: its data can't be reached from here"
	else
		cat "$log" >&2
		exit 1
	fi
fi
rm -f "$log"
echo "lint: no findings"
