"""The ledger's own schema and its versions."""
