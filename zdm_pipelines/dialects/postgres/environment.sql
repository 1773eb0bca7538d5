-- path: Where this session looks for names: the schemas that are there, so that "$user" stands for whom it is now.
SELECT coalesce(string_agg(quote_ident(schema), ', ' ORDER BY place), '')
FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (schema, place) WHERE schema NOT LIKE 'pg\_temp%';

-- settings: Settings ($1) as this session has them.
SELECT name, current_setting(name) FROM unnest($1::text[]) AS wanted (name);

-- enter: Set settings ($1) to values ($2), until the session ends.
SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS wanted (name, value);

-- own: Undo what a server, a database or a role may set, and what cannot be said as a connection is made.
-- An earlier version does not know the first, and the second takes a right. A brake must not be forgotten in a crash.
SELECT set_config(name, wanted, false) FROM (VALUES
  ('transaction_timeout', '0', current_setting('transaction_timeout', true) <> '0'),
  ('session_replication_role', 'origin', current_setting('session_replication_role') <> 'origin'),
  ('synchronous_commit', 'on', current_setting('synchronous_commit') = 'off')
) AS setting (name, wanted, differs) WHERE differs;
