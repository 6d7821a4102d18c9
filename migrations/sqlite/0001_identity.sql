-- Identity: users, refresh tokens, revocations, lockouts, password resets, API keys.
--
-- Times are milliseconds since 1970, hashes 32 bytes. `*_norm` columns hold the value folded by the gateway, because
-- SQLite lowers ASCII only. Migrations only ever add: an older replica keeps running on a newer schema.

CREATE TABLE users (
    id            TEXT    NOT NULL PRIMARY KEY,
    tenant_id     TEXT    NOT NULL,
    username      TEXT    NOT NULL,
    username_norm TEXT    NOT NULL,
    email         TEXT,
    email_norm    TEXT,
    password_hash TEXT,
    role          TEXT    NOT NULL,
    openid        TEXT,
    disabled      INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    last_login_at INTEGER,
    deleted_at    INTEGER
) STRICT;
-- A deleted user's name is free again.
CREATE UNIQUE INDEX users_username ON users (tenant_id, username_norm) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX users_email ON users (tenant_id, email_norm) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX users_openid ON users (tenant_id, openid) WHERE deleted_at IS NULL;
CREATE INDEX users_newest ON users (created_at DESC, id DESC) WHERE deleted_at IS NULL;

-- A family is the chain of tokens that began with one login; ending it ends them all.
CREATE TABLE refresh_families (
    id         TEXT    NOT NULL PRIMARY KEY,
    user_id    TEXT    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    -- That of its newest token.
    expires_at INTEGER NOT NULL,
    ended_at   INTEGER
) STRICT;
CREATE INDEX refresh_families_user ON refresh_families (user_id);
CREATE INDEX refresh_families_expires ON refresh_families (expires_at);
CREATE INDEX refresh_families_ended ON refresh_families (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE refresh_tokens (
    token_hash BLOB    NOT NULL PRIMARY KEY,
    family     TEXT    NOT NULL REFERENCES refresh_families (id) ON DELETE CASCADE,
    issued_at  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    -- Set once, by one conditional UPDATE; a second presentation is reuse.
    used_at    INTEGER
) STRICT;
CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
CREATE INDEX refresh_tokens_expires ON refresh_tokens (expires_at);

-- AUTOINCREMENT: a serial number is never given twice, even after the newest row was swept.
CREATE TABLE revocations (
    serial     INTEGER PRIMARY KEY AUTOINCREMENT,
    subject    TEXT    NOT NULL,
    not_after  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX revocations_expires ON revocations (expires_at);

-- Keyed by a hash of tenant and folded name: names come from strangers, of any length, and are sometimes passwords
-- typed into the wrong field.
CREATE TABLE lockouts (
    name_hash    BLOB    NOT NULL PRIMARY KEY,
    -- The times of the failures that count, 8 bytes each, little endian.
    failed_at    BLOB    NOT NULL,
    window_ms    INTEGER NOT NULL,
    locked_until INTEGER,
    -- From then on the row says nothing any more.
    forget_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX lockouts_forget ON lockouts (forget_at);

-- One a user: a new one voids the one before.
CREATE TABLE password_resets (
    user_id    TEXT    NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    token_hash BLOB    NOT NULL UNIQUE,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id          TEXT    NOT NULL PRIMARY KEY,
    key_hash    BLOB    NOT NULL UNIQUE,
    name        TEXT    NOT NULL,
    tenant_id   TEXT    NOT NULL,
    created_by  TEXT    NOT NULL,
    -- A JSON array of `resource:action`.
    permissions TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER,
    revoked     INTEGER NOT NULL DEFAULT 0 CHECK (revoked IN (0, 1))
) STRICT;
