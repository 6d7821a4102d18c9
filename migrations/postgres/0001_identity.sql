-- Identity: users, refresh tokens, revocations, lockouts, password resets, API keys.
--
-- Times are milliseconds since 1970, hashes 32 bytes. `*_norm` columns hold the value folded by the gateway, because
-- what the database would lower depends on its locale. Keys compare by bytes ("C"), as on SQLite: an index then outlives
-- a locale's new version. Migrations only ever add: an older replica keeps running on a newer schema.

CREATE TABLE users (
    id            TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id     TEXT COLLATE "C" NOT NULL,
    username      TEXT    NOT NULL,
    username_norm TEXT COLLATE "C" NOT NULL,
    email         TEXT,
    email_norm    TEXT COLLATE "C",
    password_hash TEXT,
    role          TEXT    NOT NULL,
    openid        TEXT COLLATE "C",
    disabled      BOOLEAN NOT NULL DEFAULT FALSE,
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL,
    last_login_at BIGINT,
    deleted_at    BIGINT
);
-- A deleted user's name is free again.
CREATE UNIQUE INDEX users_username ON users (tenant_id, username_norm) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX users_email ON users (tenant_id, email_norm) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX users_openid ON users (tenant_id, openid) WHERE deleted_at IS NULL;
CREATE INDEX users_newest ON users (created_at DESC, id DESC) WHERE deleted_at IS NULL;

-- A family is the chain of tokens that began with one login; ending it ends them all.
CREATE TABLE refresh_families (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    user_id    TEXT COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at BIGINT  NOT NULL,
    -- That of its newest token.
    expires_at BIGINT  NOT NULL,
    ended_at   BIGINT
);
CREATE INDEX refresh_families_user ON refresh_families (user_id);
CREATE INDEX refresh_families_expires ON refresh_families (expires_at);
CREATE INDEX refresh_families_ended ON refresh_families (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE refresh_tokens (
    token_hash BYTEA   NOT NULL PRIMARY KEY,
    family     TEXT COLLATE "C" NOT NULL REFERENCES refresh_families (id) ON DELETE CASCADE,
    issued_at  BIGINT  NOT NULL,
    expires_at BIGINT  NOT NULL,
    -- Set once, by one conditional UPDATE; a second presentation is reuse.
    used_at    BIGINT
);
CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
CREATE INDEX refresh_tokens_expires ON refresh_tokens (expires_at);

-- Where the serial numbers come from. Not a sequence: those are given out before the commit, so a reader that has seen 6
-- might never see 5. Whoever raises this row holds it until the commit, so serial numbers appear in order.
CREATE TABLE revocation_serial (
    only_row BOOLEAN NOT NULL PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    last     BIGINT  NOT NULL
);
INSERT INTO revocation_serial (last) VALUES (0);

CREATE TABLE revocations (
    serial     BIGINT  NOT NULL PRIMARY KEY,
    subject    TEXT    NOT NULL,
    not_after  BIGINT  NOT NULL,
    expires_at BIGINT  NOT NULL
);
CREATE INDEX revocations_expires ON revocations (expires_at);

-- Keyed by a hash of tenant and folded name: names come from strangers, of any length, and are sometimes passwords
-- typed into the wrong field.
CREATE TABLE lockouts (
    name_hash    BYTEA   NOT NULL PRIMARY KEY,
    -- The times of the failures that count, 8 bytes each, little endian.
    failed_at    BYTEA   NOT NULL,
    window_ms    BIGINT  NOT NULL,
    locked_until BIGINT,
    -- From then on the row says nothing any more.
    forget_at    BIGINT  NOT NULL
);
CREATE INDEX lockouts_forget ON lockouts (forget_at);

-- One a user: a new one voids the one before.
CREATE TABLE password_resets (
    user_id    TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    token_hash BYTEA   NOT NULL UNIQUE,
    expires_at BIGINT  NOT NULL
);

CREATE TABLE api_keys (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    key_hash    BYTEA   NOT NULL UNIQUE,
    name        TEXT    NOT NULL,
    tenant_id   TEXT COLLATE "C" NOT NULL,
    created_by  TEXT    NOT NULL,
    -- A JSON array of `resource:action`.
    permissions TEXT    NOT NULL,
    created_at  BIGINT  NOT NULL,
    expires_at  BIGINT,
    revoked     BOOLEAN NOT NULL DEFAULT FALSE
);
