-- Instants are milliseconds since the Unix epoch. A sealed value takes two columns: the id of the
-- master key, and the bytes.

CREATE TABLE apps (
    app TEXT NOT NULL PRIMARY KEY,
    alias TEXT UNIQUE,
    kind TEXT NOT NULL,
    issuer TEXT NOT NULL,
    secret_key TEXT NOT NULL,
    secret BLOB NOT NULL,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX apps_secret_key ON apps (secret_key);

CREATE TABLE client_keys (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    rights TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;

CREATE TABLE credentials (
    app TEXT NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    generation INTEGER NOT NULL,
    value_key TEXT NOT NULL,
    value BLOB NOT NULL,
    hash BLOB NOT NULL,
    sent INTEGER NOT NULL,
    answered INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    refresh_at INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    PRIMARY KEY (app, kind)
) STRICT;
CREATE INDEX credentials_value_key ON credentials (value_key);

-- The hashes of the current and of past generations, each until the latest end of its life that
-- was ever stated.
CREATE TABLE credential_history (
    app TEXT NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    generation INTEGER NOT NULL,
    hash BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (app, kind, generation)
) STRICT, WITHOUT ROWID;

CREATE TABLE troubles (
    app TEXT NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    errcode INTEGER,
    reason TEXT NOT NULL,
    errmsg TEXT,
    rid TEXT,
    action TEXT,
    since INTEGER NOT NULL,
    last INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    retry_at INTEGER,
    PRIMARY KEY (app, kind)
) STRICT, WITHOUT ROWID;

-- Outlives the app, so that one that comes back does not get its quota twice.
CREATE TABLE ledger (
    app TEXT NOT NULL,
    api TEXT NOT NULL,
    day INTEGER NOT NULL,
    used INTEGER NOT NULL,
    rested_at INTEGER NOT NULL,
    PRIMARY KEY (app, api, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX ledger_day ON ledger (day);

CREATE TABLE own_secrets (
    name TEXT NOT NULL PRIMARY KEY,
    value_key TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

-- The change log. What changed: an app (`app`), the client keys (neither), a credential (both).
CREATE TABLE changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    app TEXT,
    kind TEXT
) STRICT;

CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
