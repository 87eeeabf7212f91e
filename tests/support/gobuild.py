"""Builds the Go programs that tests and benches run against, once, into build/bin.

A program is rebuilt when its module's go.mod, go.sum or sources change; that is told from a stamp beside the binary,
so a run without changes does not start the Go toolchain at all.  No pytest here: bench/ uses this too.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "bin"
INTEROP = ROOT / "tests" / "interop" / "go"
TAILNET = ROOT / "tests" / "interop" / "go_tailnet"
ACME = ROOT / "tests" / "interop" / "go_acme"
# A module of its own: a change of it rebuilds no other.
NETSTACK = ROOT / "tests" / "interop" / "go_netstack"
TAILSCALE = ROOT / "tests" / "interop" / "go_tailscaled"
CLIENT = ROOT / "tests" / "interop" / "go_client"
# Its go.mod takes packages of both modules above.
AGENT = ROOT / "tests" / "interop" / "go_agent"
SSH = ROOT / "tests" / "interop" / "go_ssh"
# DERP over transports that bring their own: quic-go, and Go's TLS.
WIRES = ROOT / "tests" / "interop" / "go_wires"


class GoMissing(Exception):
    """There is no Go toolchain on this machine."""


class BuildFailed(Exception):
    """`go build` ended with an error; the text is its output."""


@dataclass(frozen=True, slots=True)
class GoProgram:
    """One binary: its name in build/bin, the folder of its module, what `go build` is given, build tags, the file
    that pins what it is built from, and modules of ours beside it whose packages it takes."""

    name: str
    module: Path
    package: str
    tags: tuple[str, ...] = ()
    pins: str = "go.mod"
    beside: tuple[Path, ...] = ()


# The genuine relay and its client are here in two releases, from the same sources of ours; benches take the newest.
# The newest needs a newer Go, which the toolchain fetches as a module.
RELEASES: Final = {"v1.104.7": "newest.mod", "v1.102.5": "go.mod"}
RELEASE: Final = os.environ.get("GENUINE_DERP") or next(iter(RELEASES))


def _of_release(name: str, package: str, *tags: str) -> GoProgram:
    pins = RELEASES[RELEASE]
    return GoProgram(f"{name}-{RELEASE}", INTEROP, package, (pins.removesuffix(".mod"), *tags), pins)


DERPPEER = _of_release("derppeer", "./cmd/derppeer")
DERPROLLING = _of_release("derprolling", "./cmd/derprolling")
# Genuine clients speak websocket only with this tag and TS_DEBUG_DERP_WS_CLIENT=1 in their environment.
DERPROLLING_WEBSOCKET = _of_release("derprolling-websocket", "./cmd/derprolling", "ts_debug_websockets")
DERPPEER_WEBSOCKET = _of_release("derppeer-websocket", "./cmd/derppeer", "ts_debug_websockets")
# Pinned by the `tool` lines of the module's go.mod, and therefore by its go.sum.
DERPER = _of_release("derper", "tailscale.com/cmd/derper")
NETCHECKPEER = _of_release("netcheckpeer", "./cmd/netcheckpeer")
WGPEER = GoProgram("wgpeer", INTEROP, "./cmd/wgpeer")
AUTOCERT_CACHE = GoProgram("autocertcache", INTEROP, "./cmd/autocertcache")
DERPPROBE = GoProgram("derpprobe", INTEROP, "tailscale.com/cmd/derpprobe")
PEBBLE = GoProgram("pebble", ACME, "github.com/letsencrypt/pebble/v2/cmd/pebble")
CHALLTESTSRV = GoProgram("pebble-challtestsrv", ACME, "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv")
# Without what a look-up in a netmap does not need: a third of the packages, and most of the download.
_OMITTED = tuple(f"ts_omit_{name}" for name in (TAILSCALE / "omitted").read_text().split())
TAILSCALED = GoProgram("tailscaled", TAILSCALE, "tailscale.com/cmd/tailscaled", _OMITTED)
TAILSCALED_CONTROL = GoProgram("tailscaled-control", TAILSCALE, "./cmd/control")
NETSTACK_PEER = GoProgram("netstack-peer", NETSTACK, "./cmd/peer")
MAGICPEER = GoProgram("magicpeer", TAILSCALE, "./cmd/magicpeer", _OMITTED)
# With what gathers packets, as genuine nodes have it: it is measured too.
_NODE = tuple(tag for tag in _OMITTED if tag != "ts_omit_gro")
WHOLENODE = GoProgram("wholenode", TAILSCALE, "./cmd/wholenode", _NODE)
AGENTCLIENT = GoProgram("agentclient", AGENT, "./cmd/agentclient", _NODE, beside=(TAILSCALE, TAILNET))
WGPAIRS = GoProgram("wgpairs", AGENT, "./cmd/wgpairs", _NODE, beside=(TAILSCALE, TAILNET))
LOAD = GoProgram("derpload", ROOT / "bench" / "load", ".")
TAILNET_PEER = GoProgram("tailnet-peer", TAILNET, "./cmd/peer")
TAILNET_COORDINATOR = GoProgram("tailnet-coordinator", TAILNET, "./cmd/coordinator")
TAILNET_RPC_SERVER = GoProgram("tailnet-rpcserver", TAILNET, "./cmd/rpcserver")
OAPI_CODEGEN = GoProgram("oapi-codegen", CLIENT, "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen")
# Its folder `api` is what the generator makes: tests/interop/test_generated_clients.py.
API_CLIENT = GoProgram("apiclient", CLIENT, ".")
SSH_PEER = GoProgram("sshpeer", SSH, ".")
QUICPEER = GoProgram("quicpeer", WIRES, "./cmd/quicpeer")
TLSPEER = GoProgram("tlspeer", WIRES, "./cmd/tlspeer")
COORDINATOR_LOAD = GoProgram("coordinatorload", ROOT / "bench" / "coordinator_load", ".")

ALL = (
    *(NETSTACK_PEER, SSH_PEER),
    *(DERPPEER, DERPPEER_WEBSOCKET, DERPROLLING, DERPROLLING_WEBSOCKET, NETCHECKPEER, DERPER, DERPPROBE, LOAD, WGPEER),
    *(PEBBLE, CHALLTESTSRV, AUTOCERT_CACHE),
    *(TAILSCALED, TAILSCALED_CONTROL, MAGICPEER, WHOLENODE, AGENTCLIENT, WGPAIRS),
    *(TAILNET_PEER, TAILNET_COORDINATOR, TAILNET_RPC_SERVER, COORDINATOR_LOAD, OAPI_CODEGEN),
)


def build(program: GoProgram) -> Path:
    """Path of the built binary.  Raises GoMissing or BuildFailed.  Safe to call from several processes at once."""
    binary = BIN / program.name
    stamp, wanted = BIN / f"{program.name}.stamp", _fingerprint(program)
    BIN.mkdir(parents=True, exist_ok=True)
    with _alone(BIN / f"{program.name}.lock"):
        if binary.exists() and stamp.exists() and stamp.read_text() == wanted:
            return binary
        go = shutil.which("go")
        if go is None:
            raise GoMissing(f"no `go` in PATH: install Go {_go_version(program)} or later to build {program.name}")
        print(f"building {program.name} with go (once; the first time takes a minute)", file=sys.stderr, flush=True)
        # Built beside the target and renamed: a running test keeps the file it has open.
        fresh = BIN / f"{program.name}.new"
        command = [go, "build", "-trimpath", "-buildvcs=false", f"-modfile={program.pins}", "-o", str(fresh)]
        if program.tags:
            command.append(f"-tags={','.join(program.tags)}")
        done = subprocess.run(
            [*command, program.package],
            cwd=program.module,
            env=os.environ | {"GOFLAGS": "-mod=readonly", **_toolchain(program)},  # a build never rewrites the pins
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BuildFailed(f"{' '.join(command)} {program.package} in {program.module}:\n{done.stderr}")
        fresh.replace(binary)
        stamp.write_text(wanted)
    return binary


def _fingerprint(program: GoProgram) -> str:
    digest = hashlib.sha256(repr((program.package, program.tags)).encode())
    pins = program.module / program.pins
    files = [pins, pins.with_suffix(".sum")]
    if program.package.startswith("."):  # a foreign package is told by go.sum alone
        files += sorted(path for module in (program.module, *program.beside) for path in module.rglob("*.go"))
    for path in files:
        digest.update(f"\0{os.path.relpath(path, program.module)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _toolchain(program: GoProgram) -> dict[str, str]:
    # The toolchain looks for the version that it needs in go.mod alone.
    return {} if program.pins == "go.mod" else {"GOTOOLCHAIN": f"go{_go_version(program)}"}


def _go_version(program: GoProgram) -> str:
    lines = (program.module / program.pins).read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("go "))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":  # python -m tests.support.gobuild: build everything, for CI and for the impatient
    for each in ALL:
        print(build(each))
