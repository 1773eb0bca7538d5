-- about: Of a relation: whether it is temporary, of a composite type, and how many columns it has, dropped ones included.
SELECT c.relpersistence = 't', c.reloftype <> 0,
       (SELECT count(*) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)
FROM pg_class c WHERE c.oid = $1;

-- rules: The rules of a table for some events ($2: as the catalog numbers them) that are enabled.
SELECT rulename, CASE ev_type WHEN '2' THEN 'UPDATE' WHEN '3' THEN 'INSERT' WHEN '4' THEN 'DELETE' ELSE 'SELECT' END
FROM pg_rewrite WHERE ev_class = $1 AND ev_type::text = ANY ($2) AND ev_enabled <> 'D' ORDER BY 1;

-- unpublished: Publications for which the server refuses to update ($2: pubupdate) or delete (pubdelete) rows of a
-- table, since nothing says which row it was; $3: a column is added, which a list of columns does not have.
SELECT p.pubname, CASE c.relreplident WHEN 'f' THEN 'a list of columns and replica identity full'
                                      WHEN 'i' THEN 'a replica identity whose index is gone' ELSE 'no replica identity' END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname
JOIN pg_publication p ON p.pubname = t.pubname
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
WHERE c.oid = $1 AND CASE $2 WHEN 'pubupdate' THEN p.pubupdate ELSE p.pubdelete END AND c.relpersistence = 'p' AND (
  c.relreplident = 'n'
  OR c.relreplident = 'i' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)
  OR c.relreplident = 'f' AND $3 AND to_jsonb(r) ->> 'prattrs' IS NOT NULL)
ORDER BY 1;

-- unproven: Constraints that hold for rows written from now on and were never proven: a change of any column checks them.
SELECT k.conname, CASE k.contype WHEN 'n' THEN format('%I IS NOT NULL', a.attname) ELSE pg_get_expr(k.conbin, k.conrelid) END
FROM pg_constraint k LEFT JOIN pg_attribute a ON k.contype = 'n' AND a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
WHERE k.conrelid = $1 AND k.contype IN ('c', 'n') AND NOT k.convalidated
  AND coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true) ORDER BY 1;

-- never_null: Whether a column has no NULL for another reason than its own NOT NULL: by its domain, or by a valid check.
SELECT t.typnotnull OR EXISTS (
  SELECT FROM pg_constraint k WHERE k.conrelid = a.attrelid AND k.contype = 'c' AND k.convalidated
    AND pg_get_constraintdef(k.oid) = format('CHECK ((%I IS NOT NULL))', a.attname))
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = $1 AND a.attnum = $2;

-- triggers: Triggers of a table that have one of these names.
SELECT tgname FROM pg_trigger WHERE tgrelid = $1 AND tgname = ANY ($2);

-- constraints: Constraints of a table that have one of these names.
SELECT conname FROM pg_constraint WHERE conrelid = $1 AND conname = ANY ($2);

-- event_triggers: Event triggers of others that fire at changes of a table.
SELECT evtname FROM pg_event_trigger WHERE evtenabled <> 'D'
  AND (evttags IS NULL OR evttags && ARRAY['ALTER TABLE', 'CREATE TRIGGER', 'CREATE FUNCTION', 'CREATE INDEX', 'CREATE TABLE',
                                           'DROP INDEX', 'DROP FUNCTION', 'DROP TRIGGER', 'REVOKE', 'CREATE SCHEMA'])
ORDER BY 1;
