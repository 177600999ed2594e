# Sandlot. `make` lists what can be made.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GUEST := cmd/sandlot/guestbin/sandlot-guest
export CGO_ENABLED ?= 0

.PHONY: help
help: ## list what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

.PHONY: run
run: build ## build and start the server; with no ANTHROPIC_API_KEY it uses the demo model
	@if [ -z "$${ANTHROPIC_API_KEY:-}" ]; then export SANDLOT_DEMO_MODEL=$${SANDLOT_DEMO_MODEL:-1}; fi; exec bin/sandlot serve $(ARGS)

.PHONY: build
build: ## build bin/sandlot: static, with the guest inside
	@go build -trimpath -ldflags '-s -w' -o $(GUEST) ./cmd/sandlot-guest
	@go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/sandlot ./cmd/sandlot

.PHONY: test
test: ## run all tests; installs what they need
	@test/setup.sh
	@test/run.sh

.PHONY: soak
soak: ## make and end 1,000 sandboxes, and kill things 100 times, as root and rootless; takes about an hour
	@test/setup.sh
	@SANDLOT_SOAK=$${SANDLOT_SOAK:-1000,100} test/run.sh ./test/e2e/ -run '^TestSoak$$' -v -timeout 0 -count 1

.PHONY: lint
lint: ## run all linters
	@test/lint.sh

.PHONY: bench
bench: build ## measure against gVisor alone and print ratios
	@go run ./bench

.PHONY: clean
clean: ## remove what was built
	@rm -rf bin $(GUEST)
