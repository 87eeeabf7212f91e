"""For all tests: what this process hands down to the programs it starts."""

import signal

# A shell that runs the tests in the background has them ignore SIGINT, and what is ignored stays so in every program
# they start; those that test interruption would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
