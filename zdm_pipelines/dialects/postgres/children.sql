-- references: Foreign keys that refer to a table, with the table that has them and what a delete does to its rows.
SELECT k.conname, n.nspname, c.relname, c.oid::bigint, k.confdeltype,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u(number, place)
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u(number, place)
             JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number ORDER BY u.place),
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = k.conrelid AND i.indisvalid AND i.indpred IS NULL
               AND (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.confrelid = $1 AND k.conparentid = 0 ORDER BY k.conname, c.oid;

-- row_triggers: The application's triggers on rows that fire for a delete or insert: name, before, delete, insert.
SELECT tgname, (tgtype & 2) <> 0, (tgtype & 8) <> 0, (tgtype & 4) <> 0 FROM pg_trigger
WHERE tgrelid = $1 AND NOT tgisinternal AND (tgtype & 1) <> 0 AND (tgtype & 12) <> 0 AND tgenabled <> 'D'
  AND tgname NOT LIKE 'zzz\_zdm\_%' ORDER BY tgname;

-- archive_place: Whether a schema is there, whether we may create tables in it, and whether a name in it is taken.
SELECT to_regnamespace(quote_ident($1)) IS NOT NULL,
       coalesce(has_schema_privilege(to_regnamespace(quote_ident($1))::oid, 'CREATE')
                AND has_schema_privilege(to_regnamespace(quote_ident($1))::oid, 'USAGE'), false),
       EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2);

-- owner: Who owns a table, empty when it is our role.
SELECT coalesce(nullif(pg_get_userbyid(relowner), current_user), '') FROM pg_class WHERE oid = $1;

-- default_readers: Roles that our new tables in a schema ($1) are granted to by default, quoted.
SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
FROM pg_default_acl d CROSS JOIN aclexplode(d.defaclacl) a
WHERE d.defaclobjtype = 'r' AND d.defaclrole = (SELECT oid FROM pg_roles WHERE rolname = current_user)
  AND d.defaclnamespace IN (0, to_regnamespace(quote_ident($1))::oid) AND a.grantee <> d.defaclrole ORDER BY 1;

-- users: Objects that depend on a table, such as views.
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass($1)::oid AND d.deptype = 'n' ORDER BY 1;

-- relation: The oid of a relation, null when there is none of that name.
SELECT to_regclass($1)::oid::bigint;
