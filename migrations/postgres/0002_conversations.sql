-- Conversations: sessions, their messages, turns that run, and keys of requests that may be retried.
--
-- Times are milliseconds since 1970. Everything hangs on its user: who is deleted takes it along. Keys compare by bytes
-- ("C"), as on SQLite.

CREATE TABLE sessions (
    id           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id    TEXT COLLATE "C" NOT NULL,
    user_id      TEXT COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    title        TEXT    NOT NULL,
    created_at   BIGINT  NOT NULL,
    updated_at   BIGINT  NOT NULL,
    -- The number that was last given to a message. Raised with the row locked, so numbers appear in their order.
    last_message BIGINT  NOT NULL DEFAULT 0,
    deleted_at   BIGINT
);
-- Also what deleting a user goes by.
CREATE INDEX sessions_newest ON sessions (user_id, created_at DESC, id DESC);

CREATE TABLE messages (
    id           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    session_id   TEXT COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- Its place in the session. Not the time: a question and its answer may fall into one millisecond.
    number       BIGINT  NOT NULL,
    author       TEXT    NOT NULL CHECK (author IN ('user', 'assistant')),
    content      TEXT    NOT NULL,
    status       TEXT    NOT NULL CHECK (status IN ('complete', 'interrupted', 'failed', 'cancelled')),
    total_tokens BIGINT,
    created_at   BIGINT  NOT NULL
);
CREATE UNIQUE INDEX messages_number ON messages (session_id, number);

-- Turns that run: as many as answers are being written, no more.
CREATE TABLE turns (
    -- Also the id of the assistant's message to be.
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    session_id  TEXT COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    replica     TEXT COLLATE "C" NOT NULL,
    alive_until BIGINT  NOT NULL,
    started_at  BIGINT  NOT NULL,
    said        TEXT    NOT NULL DEFAULT '',
    stop_asked  BOOLEAN NOT NULL DEFAULT FALSE
    -- Written every second, no index on what is written: room in each page lets the new version stand by the old.
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX turns_session ON turns (session_id);
CREATE INDEX turns_replica ON turns (replica);

-- What decides which of two requests with one key is the first is the primary key.
CREATE TABLE retry_keys (
    user_id    TEXT COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    tenant_id  TEXT COLLATE "C" NOT NULL,
    operation  TEXT COLLATE "C" NOT NULL,
    key_hash   BYTEA   NOT NULL,
    request    BYTEA   NOT NULL,
    expires_at BIGINT  NOT NULL,
    -- What came of the request.
    session_id TEXT COLLATE "C" NOT NULL,
    turn_id    TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (user_id, tenant_id, operation, key_hash)
);
CREATE INDEX retry_keys_expires ON retry_keys (expires_at);

-- Accounts whose deletion began and did not end.
CREATE INDEX users_deleted ON users (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX api_keys_created_by ON api_keys (created_by);
