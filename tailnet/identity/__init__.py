"""Which cloud instance is speaking, proved by a document that its cloud signed.  Layer L2; no I/O but `load_anchors`.

aws.py, azure.py and google.py each check one kind and answer `Instance`; whom they trust is anchors.py.
"""
