-- Outlives the app, so that one that comes back exchanges no code twice.
CREATE TABLE claims (
    app TEXT NOT NULL,
    code BLOB NOT NULL,
    client TEXT NOT NULL,
    proof BLOB,
    owner TEXT NOT NULL,
    claimed_at INTEGER NOT NULL,
    deadline INTEGER NOT NULL,
    settled_at INTEGER,
    outcome_key TEXT,
    outcome BLOB,
    PRIMARY KEY (app, code)
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_claimed_at ON claims (claimed_at);
CREATE INDEX claims_with_outcome ON claims (settled_at) WHERE outcome IS NOT NULL;

CREATE TABLE grants (
    app TEXT NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    openid TEXT NOT NULL,
    scope TEXT NOT NULL,
    version TEXT NOT NULL,
    tokens_key TEXT,
    tokens BLOB,
    token_expires_at INTEGER NOT NULL,
    authorised_at INTEGER NOT NULL,
    client TEXT NOT NULL,
    redirect_uri TEXT,
    ended_at INTEGER,
    ended_errcode INTEGER,
    profile_key TEXT,
    profile BLOB,
    profile_lang TEXT,
    profile_fetched_at INTEGER,
    PRIMARY KEY (app, openid, scope)
) STRICT, WITHOUT ROWID;
CREATE INDEX grants_authorised_at ON grants (authorised_at);
CREATE INDEX grants_with_profile ON grants (profile_fetched_at) WHERE profile IS NOT NULL;
CREATE INDEX grants_tokens_key ON grants (tokens_key);
CREATE INDEX grants_profile_key ON grants (profile_key);

CREATE TABLE unionids (
    app TEXT NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    openid TEXT NOT NULL,
    unionid TEXT NOT NULL,
    PRIMARY KEY (app, openid)
) STRICT, WITHOUT ROWID;

CREATE TABLE mini_sessions (
    app TEXT NOT NULL REFERENCES apps (app) ON DELETE CASCADE,
    id BLOB NOT NULL,
    openid TEXT NOT NULL,
    session_key_key TEXT NOT NULL,
    session_key BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (app, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX mini_sessions_openid ON mini_sessions (app, openid);
CREATE INDEX mini_sessions_expires_at ON mini_sessions (expires_at);
CREATE INDEX mini_sessions_session_key_key ON mini_sessions (session_key_key);
