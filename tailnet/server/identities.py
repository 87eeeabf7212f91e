"""Who says who is calling, what is counted of it, and what each may have (layer L3).  Next hop: auth/chain.py."""

from derp.server.memory import memory_bytes
from tailnet.auth.call_out import CallOut
from tailnet.auth.callers import Changes
from tailnet.auth.chain import CallerChain
from tailnet.auth.jwks import SigningKeys
from tailnet.auth.signed import SignedTokens, TokenRules
from tailnet.config import CoordinatorConfig
from tailnet.metrics import CallersReading
from tailnet.store.store import Store
from tailnet.transport.accounts import AccountLimits, Accounts


def make_callers(store: Store, config: CoordinatorConfig) -> CallerChain:
    """The store, and whom else the settings name."""
    changes = Changes()
    signed = call_out = None
    if config.auth_jwks:
        rules = TokenRules(config.auth_issuer, config.auth_audience, config.auth_leeway_seconds)
        signed = SignedTokens(SigningKeys(config.auth_jwks, changes=changes), rules)
    if config.auth_url:
        call_out = CallOut(config.auth_url, config.auth_secret, fail_open=config.auth_fail_open, changes=changes)
    return CallerChain(
        store, signed=signed, call_out=call_out, changes=changes, admins_enter=config.admin_workspace_access
    )


def read_callers(callers: CallerChain) -> CallersReading:
    """What is counted of them, for metrics."""
    call_out, signed = callers.call_out, callers.signed
    return CallersReading(
        call_out={} if call_out is None else {end.value: count for end, count in call_out.ended.items()},
        call_out_seconds=0.0 if call_out is None else call_out.asked_seconds,
        call_out_count=0 if call_out is None else call_out.asked_count,
        call_out_asking=0 if call_out is None else call_out.asking_count,
        cached={
            "store": callers.store.cached_count,
            **({} if call_out is None else {"call_out": call_out.cached_count}),
            **({} if signed is None else {"signed": signed.cached_count}),
        },
        signed_refused=None if signed is None else signed.refused_count,
        jwks_age_seconds=None if signed is None else signed.keys.age_seconds,
        jwks_keys=0 if signed is None else signed.keys.key_count,
        jwks_failures=0 if signed is None else signed.keys.failures,
    )


def make_accounts(config: CoordinatorConfig) -> Accounts:
    """What each of them may have of this server."""
    return Accounts(
        AccountLimits(
            sockets=config.max_sockets_per_caller,
            held_bytes=config.max_held_bytes_per_caller,
            total_held_bytes=config.max_held_bytes or memory_bytes() // 4,
            report_bytes_per_minute=config.max_report_bytes,
            reports_per_minute=config.max_reports,
        )
    )
