-- What running turns said so far, in pieces: what is saved each second is what came since, not all of it again.
-- `turns.said` is no longer written; what a replica of before wrote there is still read.

CREATE TABLE turn_pieces (
    turn_id TEXT    NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
    -- How many bytes of the answer come before it.
    at_byte INTEGER NOT NULL,
    said    TEXT    NOT NULL,
    PRIMARY KEY (turn_id, at_byte)
) STRICT;
