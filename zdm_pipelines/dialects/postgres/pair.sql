-- set: One setting of this session.
SELECT set_config($1, $2, false);
