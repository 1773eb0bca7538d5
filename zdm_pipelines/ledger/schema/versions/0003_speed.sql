-- How many of a range's rows were moved in place, touching no index.
ALTER TABLE zdm.range ADD COLUMN hot bigint NOT NULL DEFAULT 0;

-- What validate proved of a range, and since when the sync trigger has noted who wrote it: see zdm.written.
ALTER TABLE zdm.range ADD COLUMN proof jsonb;
ALTER TABLE zdm.migration ADD COLUMN epoch bigint NOT NULL DEFAULT 0;

-- Which ranges were written in which epoch: a range without a line since its proof need not be read
-- again. Written by the sync trigger inside the application's transactions: append-only, nothing to wait for.
CREATE TABLE zdm.written (
  migration_id bigint NOT NULL,
  epoch bigint NOT NULL,
  bucket integer NOT NULL            -- how many of the ranges' bounds are at or below the key
);
CREATE INDEX ON zdm.written (migration_id, epoch, bucket);
-- Without a key, deleting from it would be refused where a publication of all tables takes it along.
ALTER TABLE zdm.written REPLICA IDENTITY FULL;
