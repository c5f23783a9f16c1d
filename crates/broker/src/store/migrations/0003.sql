-- Keys that passes are sealed with, in the order of their publication.
CREATE TABLE pass_keys (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    value_key TEXT NOT NULL,
    value BLOB NOT NULL,
    published_at INTEGER NOT NULL
) STRICT;
