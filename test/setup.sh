#!/usr/bin/env bash
# Installs what the tests need and this machine lacks. As root it installs Debian packages; otherwise it says what is missing,
# and the tests that need it say that they were skipped.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

missing=()
have gcc || missing+=(gcc libc6-dev) # for the race detector
have git || missing+=(git)
have newuidmap || missing+=(uidmap)
have chromium || missing+=(chromium)
have nft || missing+=(nftables) # to look at rules and to make a network of a test's own
have ip || missing+=(iproute2)
have npm || missing+=(nodejs npm)
have umoci || missing+=(umoci) # unpacks images, to compare with
have skopeo || missing+=(skopeo) # copies images
{ [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1; } || missing+=(busybox-static) # runs in any image

if [ ${#missing[@]} -gt 0 ]; then
	sudo=()
	if [ "$(id -u)" != 0 ]; then sudo=(sudo -n); fi
	if have apt-get && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
		echo "installing: ${missing[*]}"
		log=$(mktemp)
		"${sudo[@]}" apt-get update -qq >"$log" 2>&1 || true # an old list may do
		if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
			tail -20 "$log"
			echo "could not install: ${missing[*]}" >&2
			exit 1
		fi
		rm -f "$log"
	else
		echo "not installed, and only root can: ${missing[*]}; tests that need them are skipped"
	fi
fi

# Rootless sandboxes are tested as a user that has a range of subordinate uids.
if [ "$(id -u)" = 0 ] && ! id sandlot-test >/dev/null 2>&1; then
	useradd --create-home --shell /bin/sh sandlot-test
fi
