PYTHON ?= .venv/bin/python

# The classes of tailnet/proto/*.proto; run it after every change of them.  OUT is for the test that compares.
OUT ?= .
.PHONY: proto
proto:
	$(PYTHON) -m grpc_tools.protoc -I tailnet/proto/generated=tailnet/proto --python_out=$(OUT) --pyi_out=$(OUT) \
		tailnet/proto/tailnet.proto tailnet/proto/agent.proto

# The golden vectors of DERP, anew from the genuine packages; boxes and masks differ from run to run.
.PHONY: derp-vectors
derp-vectors:
	cd tests/interop/go && go run ./cmd/derpvectors > derp.json.new && mv derp.json.new ../../vectors/derp.json
