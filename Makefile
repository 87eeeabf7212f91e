# `make serve` runs it, `make test` runs what CI runs; both need Python 3.11 or later and nothing else of ours.
PYTHON3 ?= $(shell command -v python3.11 || command -v python3)
PYTHON ?= .venv/bin/python
SERVE ?= .venv/bin/tailnet serve --dev
READY := .venv/.ready
LOCK := .venv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11
step = @printf '== %s\n' $(1)
.PHONY: serve test install style types tests bench fmt lock proto derp-vectors clean

serve: $(READY)
	$(SERVE)
test: style types tests
install: $(READY)
$(READY): requirements.lock pyproject.toml
	$(call step,'.venv: the wheels of requirements.lock; our own package is linked')
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: set PYTHON3")'
	$(PYTHON3) -m venv .venv
	$(PYTHON) -m pip install --quiet --require-hashes -r requirements.lock
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
	@touch $@
style: $(READY)
	$(call step,'ruff')
	$(PYTHON) -m ruff format --check --quiet . && $(PYTHON) -m ruff check --quiet .
types: $(READY)
	$(call step,'mypy --strict')
	$(PYTHON) -m mypy
tests: $(READY)
	$(call step,'pytest under coverage; the first run builds the Go programs')
	$(PYTHON) -m coverage erase
	$(PYTHON) -m coverage run -m pytest -q
	$(PYTHON) -m coverage combine --quiet && $(PYTHON) -m coverage report --skip-covered --skip-empty
bench: $(READY)
	$(PYTHON) bench/compare.py $(BENCH)
fmt: $(READY)
	$(PYTHON) -m ruff format . && $(PYTHON) -m ruff check --fix .
# UPGRADE=--upgrade takes the newest versions, without it only what pyproject.toml newly asks for.
lock: $(READY)
	$(LOCK) --all-extras $(UPGRADE) -o requirements.lock pyproject.toml
	$(LOCK) --extra build --extra postgresql --constraint requirements.lock -o deploy/requirements.lock pyproject.toml
proto:  # the classes of tailnet/proto/*.proto; OUT is for the test that compares
	$(PYTHON) -m grpc_tools.protoc -I tailnet/proto/generated=tailnet/proto --python_out=$(or $(OUT),.) --pyi_out=$(or $(OUT),.) tailnet/proto/tailnet.proto tailnet/proto/agent.proto
derp-vectors:  # DERP's golden vectors anew from the genuine packages; boxes and masks differ from run to run
	cd tests/interop/go && go run ./cmd/derpvectors > derp.json.new && mv derp.json.new ../../vectors/derp.json
clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* bench/out *.egg-info
