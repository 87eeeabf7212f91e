"""Made by `make proto` from ../tailnet.proto and ../agent.proto.  Never edit; this file only makes it a package."""
