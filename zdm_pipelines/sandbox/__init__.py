"""The sandbox: an embedded Postgres primary with a replica, and a sample application with live traffic."""
