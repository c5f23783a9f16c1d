-- Instants are milliseconds since the Unix epoch. A sealed value takes two columns: the id of the
-- master key, and the bytes.

-- How many migrations have been made.
CREATE TABLE xinfu_version (version BIGINT NOT NULL);
INSERT INTO xinfu_version (version) VALUES (0);

CREATE TABLE apps (
    app TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    alias TEXT COLLATE "C" UNIQUE,
    kind TEXT NOT NULL,
    issuer TEXT NOT NULL,
    secret_key TEXT NOT NULL,
    secret BYTEA NOT NULL,
    revision BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX apps_secret_key ON apps (secret_key);

CREATE TABLE client_keys (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL UNIQUE,
    name TEXT COLLATE "C" NOT NULL,
    hash BYTEA NOT NULL UNIQUE,
    rights TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

CREATE TABLE credentials (
    app TEXT COLLATE "C" NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    generation BIGINT NOT NULL,
    value_key TEXT NOT NULL,
    value BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    sent BIGINT NOT NULL,
    answered BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    refresh_at BIGINT NOT NULL,
    dead BOOLEAN NOT NULL,
    used_at BIGINT NOT NULL,
    PRIMARY KEY (app, kind)
);
CREATE INDEX credentials_value_key ON credentials (value_key);

-- The hashes of the current and of past generations, each until the latest end of its life that
-- was ever stated.
CREATE TABLE credential_history (
    app TEXT COLLATE "C" NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    generation BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (app, kind, generation)
);

CREATE TABLE troubles (
    app TEXT COLLATE "C" NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    errcode BIGINT,
    reason TEXT NOT NULL,
    errmsg TEXT,
    rid TEXT,
    action TEXT,
    since BIGINT NOT NULL,
    last BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    retry_at BIGINT,
    PRIMARY KEY (app, kind)
);

-- Outlives the app, so that one that comes back does not get its quota twice.
CREATE TABLE ledger (
    app TEXT COLLATE "C" NOT NULL,
    api TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    used BIGINT NOT NULL,
    rested_at BIGINT NOT NULL,
    PRIMARY KEY (app, api, day)
);
CREATE INDEX ledger_day ON ledger (day);

CREATE TABLE own_secrets (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value_key TEXT NOT NULL,
    value BYTEA NOT NULL
);

CREATE TABLE audit (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL
);

-- The change log. What changed: an app (`app`), the client keys (neither), those of passes (`kind`),
-- a credential (both).
CREATE TABLE changes (
    number BIGINT PRIMARY KEY,
    app TEXT COLLATE "C",
    kind TEXT
);

CREATE TABLE leases (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    until BIGINT NOT NULL
);

-- Outlives the app, so that one that comes back exchanges no code twice.
CREATE TABLE claims (
    app TEXT COLLATE "C" NOT NULL,
    code BYTEA NOT NULL,
    client TEXT NOT NULL,
    proof BYTEA,
    owner TEXT NOT NULL,
    claimed_at BIGINT NOT NULL,
    deadline BIGINT NOT NULL,
    settled_at BIGINT,
    outcome_key TEXT,
    outcome BYTEA,
    PRIMARY KEY (app, code)
);
CREATE INDEX claims_claimed_at ON claims (claimed_at);
CREATE INDEX claims_with_outcome ON claims (settled_at) WHERE outcome IS NOT NULL;
CREATE INDEX claims_outcome_key ON claims (outcome_key) WHERE outcome IS NOT NULL;

CREATE TABLE grants (
    app TEXT COLLATE "C" NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    openid TEXT COLLATE "C" NOT NULL,
    scope TEXT NOT NULL,
    version TEXT NOT NULL,
    tokens_key TEXT,
    tokens BYTEA,
    token_expires_at BIGINT NOT NULL,
    authorised_at BIGINT NOT NULL,
    client TEXT NOT NULL,
    redirect_uri TEXT,
    ended_at BIGINT,
    ended_errcode BIGINT,
    profile_key TEXT,
    profile BYTEA,
    profile_lang TEXT,
    profile_fetched_at BIGINT,
    PRIMARY KEY (app, openid, scope)
);
CREATE INDEX grants_authorised_at ON grants (authorised_at);
CREATE INDEX grants_with_profile ON grants (profile_fetched_at) WHERE profile IS NOT NULL;
CREATE INDEX grants_tokens_key ON grants (tokens_key);
CREATE INDEX grants_profile_key ON grants (profile_key);

CREATE TABLE unionids (
    app TEXT COLLATE "C" NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    openid TEXT COLLATE "C" NOT NULL,
    unionid TEXT NOT NULL,
    PRIMARY KEY (app, openid)
);

CREATE TABLE mini_sessions (
    app TEXT COLLATE "C" NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    id BYTEA NOT NULL,
    openid TEXT COLLATE "C" NOT NULL,
    session_key_key TEXT NOT NULL,
    session_key BYTEA NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (app, id)
);
CREATE INDEX mini_sessions_openid ON mini_sessions (app, openid);
CREATE INDEX mini_sessions_expires_at ON mini_sessions (expires_at);
CREATE INDEX mini_sessions_session_key_key ON mini_sessions (session_key_key);

-- Keys that passes are sealed with, in the order of their publication.
CREATE TABLE pass_keys (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL UNIQUE,
    value_key TEXT NOT NULL,
    value BYTEA NOT NULL,
    published_at BIGINT NOT NULL
);

-- The time of the store: what every instant is measured by. The time of the transaction's start
-- would not do, since a transaction may wait for another.
CREATE FUNCTION xinfu_now() RETURNS BIGINT LANGUAGE sql VOLATILE AS
$$ SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::BIGINT $$;

-- Appends to the change log, wakes those who listen, and answers the entry's number. From here to its
-- commit a transaction is alone, so that entries become visible in the order of their numbers, and
-- whoever has read one has missed none before it. NOTIFY would order commits as well, but only later.
CREATE FUNCTION xinfu_log(changed_app TEXT, changed_kind TEXT) RETURNS BIGINT LANGUAGE plpgsql AS
$$
DECLARE
    newest BIGINT;
BEGIN
    PERFORM pg_advisory_xact_lock(8243109876543210001);
    SELECT coalesce(max(number), 0) + 1 INTO newest FROM changes;
    INSERT INTO changes (number, app, kind) VALUES (newest, changed_app, changed_kind);
    PERFORM pg_notify('xinfu_changes', newest::TEXT);
    RETURN newest;
END
$$;
