-- hangs: Everything that stands on a column ($2) of a table ($1), or on what goes with the column, and neither goes on to the new column nor is ours: its class, its oid, what it is.
-- An index, a constraint, a default and an owned sequence of the column itself are looked for by queries of their own.
WITH RECURSIVE hangs AS (
  SELECT d.classid, d.objid, d.objsubid, d.deptype FROM pg_depend d
  WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid AND d.refobjsubid = $2::int
  UNION SELECT d.classid, d.objid, d.objsubid, d.deptype FROM hangs h
  JOIN pg_depend d ON d.refclassid = h.classid AND d.refobjid = h.objid
  WHERE h.classid = 'pg_constraint'::regclass OR EXISTS (SELECT FROM pg_index i WHERE i.indexrelid = h.objid))
SELECT DISTINCT h.classid::regclass::text, h.objid::bigint, pg_describe_object(h.classid, h.objid, h.objsubid) FROM hangs h
WHERE CASE h.classid::regclass::text
  WHEN 'pg_class' THEN h.objid <> $1::oid AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indexrelid = h.objid AND i.indrelid = $1::oid)
    AND NOT (h.deptype = 'a' AND EXISTS (SELECT FROM pg_class s WHERE s.oid = h.objid AND s.relkind = 'S'))
  WHEN 'pg_attrdef' THEN NOT EXISTS (SELECT FROM pg_attrdef f WHERE f.oid = h.objid AND f.adrelid = $1::oid AND f.adnum = $2::int)
  WHEN 'pg_constraint' THEN NOT EXISTS (
    SELECT FROM pg_constraint k WHERE k.oid = h.objid AND k.conrelid = $1::oid AND $2::int2 = ANY (k.conkey)
      AND NOT (k.confrelid = $1::oid AND $2::int2 = ANY (k.confkey)))
  WHEN 'pg_trigger' THEN NOT EXISTS (
    SELECT FROM pg_trigger t WHERE t.oid = h.objid AND (t.tgisinternal OR t.tgname LIKE 'zzz\_zdm\_%'))
  WHEN 'pg_statistic_ext' THEN $3::text IS NULL OR NOT EXISTS (SELECT FROM pg_statistic_ext s WHERE s.oid = h.objid AND s.stxexprs IS NULL)
  ELSE true END
ORDER BY 3;

-- state: What a column ($2) of a table ($1) is today: its number, NOT NULL, default, identity; none: it is gone.
SELECT a.attnum, a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity <> ''
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1::oid AND a.attname = $2 AND NOT a.attisdropped;

-- kin: Tables that are a table's ($1) parent or child, and its type: what it has, and the statement that ends it.
SELECT format('table %s inherits from %s: rows there are neither moved nor mirrored', i.inhrelid::regclass, i.inhparent::regclass),
       CASE WHEN c.relispartition THEN format('ALTER TABLE %I.%I DETACH PARTITION %I.%I', m.nspname, p.relname, n.nspname, c.relname)
            ELSE format('ALTER TABLE %I.%I NO INHERIT %I.%I', n.nspname, c.relname, m.nspname, p.relname) END
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace m ON m.oid = p.relnamespace WHERE $1::oid IN (i.inhparent, i.inhrelid)
UNION ALL SELECT format('table %s is of type %s, which keeps its columns as they are', c.oid::regclass, c.reloftype::regtype),
       format('ALTER TABLE %I.%I NOT OF', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid AND c.reloftype <> 0;

-- row_type: What has rows of a table ($1) as its values: the values lose the column, too.
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_class c JOIN pg_type t ON t.oid = c.reltype
JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray) AND d.deptype = 'n'
WHERE c.oid = $1::oid AND d.classid IN ('pg_class'::regclass, 'pg_type'::regclass) ORDER BY 1;

-- texts: Functions whose text may name a column ($2) of a table ($1): what they are, their text, whether the table's own triggers call them, whether they take or give its rows.
SELECT format('function %s', p.oid::regprocedure), p.prosrc,
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = $1::oid AND t.tgfoid = p.oid AND t.tgenabled <> 'D'),
       p.prorettype IN (y.oid, y.typarray) OR coalesce(p.proallargtypes, p.proargtypes::oid[]) && ARRAY[y.oid, y.typarray]
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
CROSS JOIN (SELECT t.oid, t.typarray FROM pg_class c JOIN pg_type t ON t.oid = c.reltype WHERE c.oid = $1::oid) y
WHERE l.lanname NOT IN ('c', 'internal') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zdm')
  AND n.nspname NOT LIKE 'pg\_temp\_%' AND (strpos(lower(p.prosrc), lower($2)) > 0 OR strpos(lower(p.prosrc), lower(replace($2, '"', '""'))) > 0)
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
ORDER BY 1;

-- handed: Triggers of a table ($1), ours aside, that hand the name of a column ($2) to their function.
SELECT format('trigger %I', tgname) FROM pg_trigger
WHERE tgrelid = $1::oid AND NOT tgisinternal AND tgenabled <> 'D' AND tgnargs > 0 AND tgname NOT LIKE 'zzz\_zdm\_%'
  AND $2 = ANY (string_to_array(convert_from(decode(replace(encode(tgargs, 'hex'), '00', '01'), 'hex'), 'UTF8'), chr(1)))
ORDER BY 1;

-- update_of: Triggers of a table ($1), ours aside, that fire only for statements that set a column ($2).
SELECT tgname FROM pg_trigger
WHERE tgrelid = $1::oid AND NOT tgisinternal AND tgenabled <> 'D' AND tgname NOT LIKE 'zzz\_zdm\_%'
  AND $2::int2 = ANY (tgattr::int2[]) ORDER BY 1;

-- owned: Sequences that belong to a column ($2) of a table ($1).
SELECT d.objid::regclass::text FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a'
  AND d.refobjid = $1::oid AND d.refobjsubid = $2::int ORDER BY 1;

-- settings: What belongs to a column ($2) of a table ($1), and the new one ($4, in $3) has not: statements for table $5 that give it, each with the lock that it takes. What the new column has of its own stays.
SELECT s.statement, CASE WHEN s.place IN (3, 4) THEN 'SHARE UPDATE EXCLUSIVE' WHEN s.place = 1 THEN 'none' ELSE 'brief' END
FROM pg_attribute o JOIN pg_type ot ON ot.oid = o.atttypid JOIN pg_class c ON c.oid = o.attrelid
JOIN pg_attribute n ON n.attrelid = $3::oid AND n.attname = $4::text AND NOT n.attisdropped JOIN pg_type nt ON nt.oid = n.atttypid
CROSS JOIN LATERAL (
  SELECT 1, format('GRANT %s ON TABLE %s TO %s%s',
    string_agg(format('%s (%I)', a.privilege_type, $4::text), ', ' ORDER BY a.privilege_type), $5::text,
    CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
    CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM aclexplode(o.attacl) a WHERE a.grantee <> c.relowner AND NOT EXISTS (
    SELECT FROM aclexplode(n.attacl) b
    WHERE b.grantee = a.grantee AND b.privilege_type = a.privilege_type AND b.is_grantable >= a.is_grantable)
  GROUP BY a.grantee, a.is_grantable
  UNION ALL SELECT 2, format('COMMENT ON COLUMN %s.%I IS %L', $5::text, $4::text, col_description(o.attrelid, o.attnum))
  WHERE col_description(o.attrelid, o.attnum) IS NOT NULL AND col_description(n.attrelid, n.attnum) IS NULL
  UNION ALL SELECT 3, format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', $5::text, $4::text, o.attstattarget)
  WHERE coalesce(o.attstattarget, -1) >= 0 AND coalesce(n.attstattarget, -1) < 0
  UNION ALL SELECT 4, format('ALTER TABLE %s ALTER COLUMN %I SET (%s)', $5::text, $4::text, array_to_string(o.attoptions, ', '))
  WHERE o.attoptions IS NOT NULL AND n.attoptions IS NULL
  UNION ALL SELECT 5, format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE %s', $5::text, $4::text,
    CASE o.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END)
  WHERE o.attstorage <> ot.typstorage AND nt.typstorage <> 'p' AND n.attstorage = nt.typstorage AND n.attstorage <> o.attstorage
  UNION ALL SELECT 6, format('ALTER TABLE %s ALTER COLUMN %I SET COMPRESSION %s', $5::text, $4::text,
    CASE o.attcompression WHEN 'l' THEN 'lz4' ELSE 'pglz' END)
  WHERE o.attcompression IN ('l', 'p') AND n.attcompression NOT IN ('l', 'p') AND nt.typstorage <> 'p'
  UNION ALL SELECT 7, format('SECURITY LABEL FOR %I ON COLUMN %s.%I IS %L', l.provider, $5::text, $4::text, l.label)
  FROM pg_seclabel l WHERE l.classoid = 'pg_class'::regclass AND l.objoid = o.attrelid AND l.objsubid = o.attnum
    AND NOT EXISTS (SELECT FROM pg_seclabel m WHERE m.provider = l.provider AND m.classoid = 'pg_class'::regclass
                    AND m.objoid = n.attrelid AND m.objsubid = n.attnum)
) AS s (place, statement)
WHERE o.attrelid = $1::oid AND o.attname = $2::text AND NOT o.attisdropped ORDER BY s.place, s.statement;

-- twins: What belongs to the indexes and constraints of table $1 ($2: their names, as JSON from old to new) and their successors have not: statements for table $3 that give it.
SELECT s.statement FROM jsonb_each_text($2::jsonb) AS pair (old, new)
CROSS JOIN LATERAL (
  SELECT format('COMMENT ON INDEX %s IS %L', n.indexrelid::regclass, obj_description(o.indexrelid, 'pg_class'))
  FROM pg_index o JOIN pg_class oc ON oc.oid = o.indexrelid AND oc.relname = pair.old,
       pg_index n JOIN pg_class nc ON nc.oid = n.indexrelid AND nc.relname = pair.new
  WHERE o.indrelid = $1::oid AND n.indrelid = $1::oid AND obj_description(o.indexrelid, 'pg_class') IS NOT NULL
    AND obj_description(n.indexrelid, 'pg_class') IS NULL
  UNION ALL SELECT format('ALTER INDEX %s ALTER COLUMN %s SET STATISTICS %s', nc.oid::regclass, oa.attnum, oa.attstattarget)
  FROM pg_class oc JOIN pg_index o ON oc.oid = o.indexrelid JOIN pg_attribute oa ON oa.attrelid = oc.oid,
       pg_class nc JOIN pg_index n ON nc.oid = n.indexrelid JOIN pg_attribute na ON na.attrelid = nc.oid
  WHERE o.indrelid = $1::oid AND n.indrelid = $1::oid AND oc.relname = pair.old AND nc.relname = pair.new
    AND na.attnum = oa.attnum AND coalesce(oa.attstattarget, -1) >= 0 AND coalesce(na.attstattarget, -1) < 0
  UNION ALL SELECT format('COMMENT ON CONSTRAINT %I ON %s IS %L', pair.new, $3::text, obj_description(o.oid, 'pg_constraint'))
  FROM pg_constraint o, pg_constraint n
  WHERE o.conrelid = $1::oid AND n.conrelid = $1::oid AND o.conname = pair.old AND n.conname = pair.new
    AND obj_description(o.oid, 'pg_constraint') IS NOT NULL AND obj_description(n.oid, 'pg_constraint') IS NULL
) AS s (statement) ORDER BY 1;

-- clustered: Which of the indexes of table $1 ($2: their names, as JSON from old to new) CLUSTER goes by, or their successors.
SELECT pair.old, pair.new, n.indexrelid::bigint FROM jsonb_each_text($2::jsonb) AS pair (old, new)
JOIN pg_index o ON o.indrelid = $1::oid JOIN pg_class oc ON oc.oid = o.indexrelid AND oc.relname = pair.old
JOIN pg_index n ON n.indrelid = $1::oid JOIN pg_class nc ON nc.oid = n.indexrelid AND nc.relname = pair.new
WHERE o.indisclustered OR n.indisclustered ORDER BY 1;

-- statistics: Extended statistics of columns with one ($2) among them, in table $1, where the new one ($3) has none alike: statements for table $4 that make them.
SELECT format('CREATE STATISTICS %I.%I%s ON %s FROM %s', ns.nspname, left(replace(s.stxname, $2::text, $3::text) ||
         CASE WHEN strpos(s.stxname, $2::text) > 0 THEN '' ELSE '_zdm' END, 63),
         coalesce((SELECT format(' (%s)', string_agg(CASE k WHEN 'd' THEN 'ndistinct' WHEN 'f' THEN 'dependencies' ELSE 'mcv' END, ', '))
                   FROM unnest(s.stxkind) AS k), ''),
         (SELECT string_agg(quote_ident(CASE WHEN a.attname = $2::text THEN $3::text ELSE a.attname END), ', ' ORDER BY u.place)
          FROM unnest(s.stxkeys::int2[]) WITH ORDINALITY AS u (number, place)
          JOIN pg_attribute a ON a.attrelid = s.stxrelid AND a.attnum = u.number), $4::text) AS statement
FROM pg_statistic_ext s JOIN pg_namespace ns ON ns.oid = s.stxnamespace
JOIN pg_attribute o ON o.attrelid = s.stxrelid AND o.attname = $2::text AND NOT o.attisdropped
JOIN pg_attribute n ON n.attrelid = s.stxrelid AND n.attname = $3::text AND NOT n.attisdropped
WHERE s.stxrelid = $1::oid AND s.stxexprs IS NULL AND o.attnum = ANY (s.stxkeys::int2[]) AND NOT EXISTS (
  SELECT FROM pg_statistic_ext t WHERE t.stxrelid = s.stxrelid AND t.stxexprs IS NULL AND t.stxkind <@ s.stxkind AND t.stxkind @> s.stxkind
    AND t.stxkeys::int2[] @> array_replace(s.stxkeys::int2[], o.attnum, n.attnum)
    AND t.stxkeys::int2[] <@ array_replace(s.stxkeys::int2[], o.attnum, n.attnum)) ORDER BY 1;

-- enforced: Indexes and constraints of a column ($2) of a table ($1): what they are, their names, whether an index is invalid.
SELECT 'index', c.relname, NOT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::oid AND NOT i.indisprimary AND NOT EXISTS (
    SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('u', 'x', 'p'))
  AND ($2::int2 = ANY (i.indkey::int2[]) OR EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid AND d.refobjsubid = $2::int))
UNION ALL SELECT 'constraint', conname, false FROM pg_constraint
WHERE conrelid = $1::oid AND contype IN ('c', 'f', 'u', 'x') AND $2::int2 = ANY (conkey) ORDER BY 2;

-- standing: Names of the indexes and constraints of a table ($1) that are alike to a constraint ($2) of its column $3 but for standing on column $4.
SELECT n.conname FROM pg_constraint o
JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attname = $3::text AND NOT a.attisdropped
JOIN pg_attribute b ON b.attrelid = o.conrelid AND b.attname = $4::text AND NOT b.attisdropped
JOIN pg_constraint n ON n.conrelid = o.conrelid AND n.contype = o.contype AND n.oid <> o.oid
WHERE o.conrelid = $1::oid AND o.conname = $2 AND o.contype = 'f'
  AND n.conkey = array_replace(o.conkey, a.attnum, b.attnum) AND n.confrelid = o.confrelid AND n.confkey = o.confkey
  AND (n.confupdtype, n.confdeltype, n.confmatchtype, n.condeferrable, n.condeferred)
    = (o.confupdtype, o.confdeltype, o.confmatchtype, o.condeferrable, o.condeferred) ORDER BY 1;

-- alike_check: Names of CHECKs of a table ($1) that say a text ($2).
SELECT conname FROM pg_constraint
WHERE conrelid = $1::oid AND contype = 'c' AND replace(pg_get_constraintdef(oid), ' NOT VALID', '') = $2 ORDER BY 1;

-- alike_index: Names of indexes of a table ($1) that are alike: unique or not ($2), this definition ($3), backing a unique constraint or not ($4).
SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::oid AND i.indisunique = $2::boolean AND right(pg_get_indexdef(i.indexrelid), length($3::text)) = $3::text
  AND (NOT $4::boolean OR NOT i.indisvalid
       OR EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype = 'u'))
ORDER BY i.indisvalid DESC, 1;

-- view: A view that a rule ($1) belongs to: its name, its kind, its text, its columns, its options; none: another rule.
SELECT format('%I.%I', n.nspname, c.relname), c.relkind, rtrim(pg_get_viewdef(c.oid), ';'),
       (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0),
       (SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0),
       coalesce(array_to_string(c.reloptions, ', '), '')
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.oid = $1::oid AND r.rulename = '_RETURN' AND c.relkind IN ('v', 'm');

-- columns_read: The columns that an object ($1: its class, $2: its oid) reads.
SELECT DISTINCT refobjid::bigint, refobjsubid::int FROM pg_depend
WHERE classid = $1::regclass AND objid = $2::oid AND refclassid = 'pg_class'::regclass AND refobjsubid > 0 ORDER BY 1, 2;

-- rewritten: The view that was made to try a text: the oid of its rule, and the types of its columns.
SELECT r.oid::bigint, (SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
                       FROM pg_attribute WHERE attrelid = r.ev_class AND attnum > 0)
FROM pg_rewrite r WHERE r.ev_class = 'pg_temp.zdm_rewritten'::regclass AND r.rulename = '_RETURN';

-- policy: A policy ($1): its name, its table, what it says of rows that are read, and of rows that are written.
SELECT quote_ident(p.polname), format('%I.%I', n.nspname, c.relname), pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.oid = $1::oid;

-- trigger: A trigger ($1): the statement that makes it, its name and its table as they are printed there.
SELECT pg_get_triggerdef(t.oid), quote_ident(t.tgname), format('%I.%I', n.nspname, c.relname), t.tgconstraint <> 0
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.oid = $1::oid;

-- published: An entry of a publication ($1): the publication, the table, its columns as far as they are listed, and which rows.
SELECT quote_ident(t.pubname), format('%I.%I', t.schemaname, t.tablename),
       CASE WHEN to_jsonb(r) ->> 'prattrs' IS NOT NULL THEN ARRAY(SELECT quote_ident(a) FROM unnest(t.attnames) AS a) END,
       t.rowfilter
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_publication_tables t ON t.pubname = p.pubname AND t.schemaname = n.nspname AND t.tablename = c.relname
WHERE r.oid = $1::oid;

-- losses: What goes with a column ($2) of a table ($1) when the column has no successor in the table.
SELECT 'index "' || replace(c.relname, '"', '""') || '"' FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::oid AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid)
  AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
              AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid AND d.refobjsubid = $2::int)
UNION ALL SELECT 'constraint ' || quote_ident(conname) FROM pg_constraint
WHERE conrelid = $1::oid AND contype IN ('c', 'f', 'u', 'x') AND $2::int2 = ANY (conkey)
UNION ALL SELECT format('what %s may do with it', CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE 'role ' || quote_ident(pg_get_userbyid(a.grantee)) END)
FROM pg_attribute o JOIN pg_class c ON c.oid = o.attrelid CROSS JOIN LATERAL aclexplode(o.attacl) a
WHERE o.attrelid = $1::oid AND o.attnum = $2::int2 AND a.grantee <> c.relowner GROUP BY a.grantee
UNION ALL SELECT 'its comment' WHERE col_description($1::oid, $2::int) IS NOT NULL
UNION ALL SELECT 'its security label' FROM pg_seclabel
WHERE classoid = 'pg_class'::regclass AND objoid = $1::oid AND objsubid = $2::int ORDER BY 1;
