"""What happens, in order: expand, backfill, validate, switch_reads, contract."""
