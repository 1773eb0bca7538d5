"""The SQL of each kind of change, one module a kind: which of them there are is what Postgres can do."""
