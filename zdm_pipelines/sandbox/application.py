"""Application: the sample application's database, a users table with plausible people in it."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

Progress = Callable[[int, int], None]
"""Called with the rows that are there and the rows there will be."""

_CHUNK = 20_000  # rows per statement: a progress report about every 0.2 s

_SCHEMA = """
CREATE TABLE public.users (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text NOT NULL UNIQUE,
    full_name text NOT NULL,
    bio text,
    login_count integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""

_FILL = """
INSERT INTO public.users (email, full_name, bio, login_count, created_at)
SELECT 'user' || n || '@example.com',
       (ARRAY['Ada', 'Alan', 'Barbara', 'Donald', 'Edsger', 'Grace', 'John', 'Katherine', 'Leslie',
       'Niklaus'])
           [1 + n %% 10]
       || ' ' || (ARRAY['Álvarez', 'Brown', 'Chen', 'Dubois', 'Eriksson', 'Fischer', 'García', 'O''Neill',
       'Rossi', 'Sato',
                        'Žižek']) [1 + n / 10 %% 11]
       || ' ' || n,
       CASE WHEN n %% 3 = 0 THEN NULL ELSE repeat('Wrote program number ' || n || '. ', 1 + n %% 4) END,
       n %% 50,
       now() - make_interval(mins => n)
FROM generate_series(%s::int, %s::int) AS n
"""


def load(url: str, rows: int = 200_000, *, progress: Progress | None = None) -> None:
    """Create and fill `public.users`.

    Args:
        url: the application's database, which has no such table yet.
        rows: how many users.
        progress: called after every chunk.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        # A crash during the load only means to load again.
        connection.execute("SET synchronous_commit = off")
        connection.execute(_SCHEMA)
        for first in range(1, rows + 1, _CHUNK):
            last = min(first + _CHUNK - 1, rows)
            connection.execute(_FILL, [first, last])
            if progress is not None:
                progress(last, rows)
        connection.execute("CREATE INDEX users_full_name_idx ON public.users (full_name)")
        connection.execute("ANALYZE public.users")
