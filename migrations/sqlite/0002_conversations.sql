-- Conversations: sessions, their messages, turns that run, and keys of requests that may be retried.
--
-- Times are milliseconds since 1970. Everything hangs on its user: who is deleted takes it along.

CREATE TABLE sessions (
    id           TEXT    NOT NULL PRIMARY KEY,
    tenant_id    TEXT    NOT NULL,
    user_id      TEXT    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    title        TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    -- The number that was last given to a message. Raised with the row locked, so numbers appear in their order.
    last_message INTEGER NOT NULL DEFAULT 0,
    deleted_at   INTEGER
) STRICT;
-- Also what deleting a user goes by.
CREATE INDEX sessions_newest ON sessions (user_id, created_at DESC, id DESC);

CREATE TABLE messages (
    id           TEXT    NOT NULL PRIMARY KEY,
    session_id   TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- Its place in the session. Not the time: a question and its answer may fall into one millisecond.
    number       INTEGER NOT NULL,
    author       TEXT    NOT NULL CHECK (author IN ('user', 'assistant')),
    content      TEXT    NOT NULL,
    status       TEXT    NOT NULL CHECK (status IN ('complete', 'interrupted', 'failed', 'cancelled')),
    total_tokens INTEGER,
    created_at   INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX messages_number ON messages (session_id, number);

-- Turns that run: as many as answers are being written, no more.
CREATE TABLE turns (
    -- Also the id of the assistant's message to be.
    id          TEXT    NOT NULL PRIMARY KEY,
    session_id  TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    replica     TEXT    NOT NULL,
    alive_until INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    said        TEXT    NOT NULL DEFAULT '',
    stop_asked  INTEGER NOT NULL DEFAULT 0 CHECK (stop_asked IN (0, 1))
) STRICT;
CREATE INDEX turns_session ON turns (session_id);
CREATE INDEX turns_replica ON turns (replica);

-- What decides which of two requests with one key is the first is the primary key.
CREATE TABLE retry_keys (
    user_id    TEXT    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    tenant_id  TEXT    NOT NULL,
    operation  TEXT    NOT NULL,
    key_hash   BLOB    NOT NULL,
    request    BLOB    NOT NULL,
    expires_at INTEGER NOT NULL,
    -- What came of the request.
    session_id TEXT    NOT NULL,
    turn_id    TEXT    NOT NULL,
    PRIMARY KEY (user_id, tenant_id, operation, key_hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX retry_keys_expires ON retry_keys (expires_at);

-- Accounts whose deletion began and did not end.
CREATE INDEX users_deleted ON users (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX api_keys_created_by ON api_keys (created_by);
