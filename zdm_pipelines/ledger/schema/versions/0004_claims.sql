-- The relations that a migration holds from its first phase to its end: no second migration touches them. That is a fact
-- of the database, not of our carefulness.
CREATE TABLE zdm.claim (
  relation oid PRIMARY KEY,
  migration_id bigint NOT NULL REFERENCES zdm.migration ON DELETE CASCADE,
  place smallint NOT NULL,           -- in which order the relations of a migration are locked
  name text NOT NULL                 -- what the relation was called when it was claimed
);

-- Up to here, every active migration held its one table. The lock that the reference took keeps others from beginning.
INSERT INTO zdm.claim (relation, migration_id, place, name)
SELECT table_oid, id, 0, table_name FROM zdm.migration WHERE state NOT IN ('planned', 'contracted', 'rolled_back');
DROP INDEX zdm.migration_one_active_per_table;
