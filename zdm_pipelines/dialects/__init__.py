"""All SQL that differs between servers, one folder each."""
