//! What comes through the door.
