-- some: Whether anybody receives changes of this database, or will when they are back: a logical slot waits for them.
SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database());

-- whole_rows: Publications (quoted where needed) that send every column of a table ($1), with which rows if the publication lists the table.
SELECT quote_ident(p.pubname), CASE WHEN r.oid IS NOT NULL THEN coalesce(t.rowfilter, 'true') END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname
JOIN pg_publication p ON p.pubname = t.pubname
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
WHERE c.oid = $1::oid AND to_jsonb(r) ->> 'prattrs' IS NULL ORDER BY 1;

-- unasked: Publications (quoted where needed) that send each table of a schema ($1), or of all: one that is made later, too.
SELECT quote_ident(p.pubname) FROM pg_publication p
WHERE p.puballtables OR EXISTS (
  SELECT FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
  WHERE t.pubname = p.pubname AND t.schemaname = $1::text
    AND NOT EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid))
ORDER BY 1;
