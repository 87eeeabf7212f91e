# `make serve` runs it, `make demo` shows it, `make test` runs what CI runs; all need Python 3.11 or later, nothing else of ours.
PYTHON3 ?= $(shell command -v python3.11 || command -v python3)
PYTHON ?= .venv/bin/python
SERVE ?= .venv/bin/tailnet serve --dev
READY := .venv/.ready
export PYTHONDONTWRITEBYTECODE :=  # empty, whatever it was: tests start hundreds of programs, and compiling took half of each start
LOCK := .venv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11
PYTEST := $(PYTHON) -m coverage run -m pytest -q
NODES := $(addprefix tests/tailnet/,agent cli client netstack node paths wireguard)
SERVERS := tests/tailnet/api tests/tailnet/server
CORES := tests/derp/protocol tests/derp/relay tests/derp/netcheck tests/tailnet/rpc tests/tailnet/coordinator tests/tailnet/replica
step = @printf '== %s\n' $(1)
define part  # of the tests: what it is, what it is given, its environment
$(step)
@$(3) $(PYTEST) $(2)
endef
.PHONY: serve demo test install style types tests unit nodes api stores interop older poll lowest bench fuzz soak sim fmt lock proto openapi derp-vectors clean

serve: $(READY); $(SERVE)
demo: $(READY); @.venv/bin/tailnet demo
test: style tests
install: $(READY)
$(READY): requirements.lock pyproject.toml
	$(call step,'.venv: the wheels of requirements.lock; our own package is linked')
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: set PYTHON3")'
	$(PYTHON3) -m venv .venv
	$(PYTHON) -m pip install --quiet --require-hashes -r requirements.lock
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
	@touch $@
style: $(READY); $(call step,'ruff') && $(PYTHON) -m ruff format --check --quiet . && $(PYTHON) -m ruff check --quiet .
types: $(READY); $(call step,'mypy --strict') && $(PYTHON) -m mypy
tests: $(READY)  # types and parts side by side, the longest first, each prints when it is done; the floor is two points under what is covered
	@$(PYTHON) -m coverage erase
	$(MAKE) --no-print-directory --keep-going --jobs=3 --output-sync=line types unit interop api poll nodes older stores lowest
	@$(PYTHON) -m coverage combine --quiet && $(PYTHON) -m coverage report --skip-covered --skip-empty --fail-under=90
unit: $(READY)
	$(call part,'unit: everything but the other parts',tests --ignore=tests/interop $(addprefix --ignore=,$(NODES) $(SERVERS)))
nodes: $(READY)
	$(call part,'nodes: the data plane with its agent and its commands; much of it waits',$(NODES))
api: $(READY)
	$(call part,'api: the coordinator as a whole; much of it waits',$(SERVERS))
interop: $(READY)
	$(call part,'interop: genuine peers; the first run builds the Go programs',tests/interop)
stores: $(READY)
	$(call part,'stores: on PostgreSQL what runs on SQLite elsewhere',--every-store -k postgresql -m 'not stores' tests/tailnet/auth tests/tailnet/server tests/tailnet/services)
older poll stores: PYTEST := $(PYTHON) -m pytest -q  # the lines they run are counted elsewhere, and counting takes a third
older: $(READY)
	$(call part,'older: the DERP peers of the release before the newest',$(foreach each,server client mesh metrics reconnect,tests/interop/test_derp_$(each).py),GENUINE_DERP=v1.102.5)
poll: $(READY)
	$(call part,'poll: servers where epoll is missing; which store they have is nothing to it',-k 'not postgresql' tests/derp/server tests/tailnet/server,REACTOR_POLLER=poll)
lowest: $(READY)
	$(call step,'lowest: the cores on the oldest libraries that pyproject.toml allows')
	@.venv/bin/uv venv --quiet --clear --python $(PYTHON) .venv/lowest
	@.venv/bin/uv pip compile --quiet --resolution lowest-direct --extra postgresql pyproject.toml -o .venv/lowest.txt
	@.venv/bin/uv pip install --quiet --python .venv/lowest/bin/python -r .venv/lowest.txt pytest pytest-trio pytest-timeout hypothesis
	@.venv/lowest/bin/python -m pytest -q -p no:cacheprovider $(CORES)
bench: $(READY); $(PYTHON) bench/compare.py $(BENCH)
fuzz: $(READY); $(PYTHON) -m tests.fuzz.relays --seconds $(or $(SECONDS),600)  # a whole relay under strangers
soak: $(READY); $(PYTHON) -m tests.fuzz.soak_workers --seconds $(or $(SECONDS),600)  # a region, and a relay of workers, in faults
sim: $(READY); $(PYTHON) -m sim --seeds $(or $(SEEDS),0..1000000)  # replicas in schedules of faults
fmt: $(READY); $(PYTHON) -m ruff format . && $(PYTHON) -m ruff check --fix .
lock: $(READY)  # UPGRADE=--upgrade takes the newest versions, without it only what pyproject.toml newly asks for
	$(LOCK) --all-extras $(UPGRADE) -o requirements.lock pyproject.toml
	$(LOCK) --extra build --extra postgresql --extra quic --extra redis --constraint requirements.lock -o deploy/requirements.lock pyproject.toml
proto:  # the classes of tailnet/proto/*.proto; OUT is for the test that compares
	$(PYTHON) -m grpc_tools.protoc -I tailnet/proto/generated=tailnet/proto --python_out=$(or $(OUT),.) --pyi_out=$(or $(OUT),.) tailnet/proto/tailnet.proto tailnet/proto/agent.proto
openapi: $(READY); @$(PYTHON) -m tests.support.openapi_document  # docs/openapi*.json anew, after a change of the API
derp-vectors: ; cd tests/interop/go && go run ./cmd/derpvectors > derp.json.new && mv derp.json.new ../../vectors/derp.json  # anew from the genuine packages; boxes and masks differ
clean: ; rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* bench/out *.egg-info
