"""Many replicas and their peers in one process and in virtual time: the real cores, seeded faults, and laws."""
