//! Where an event ends.

/// Where in the stream the last byte stood. Lines end in LF, CR or CRLF; an empty line ends an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Inside a line.
    in_line: bool,
    /// The event under way has a line that is no comment.
    in_event: bool,
    /// The last byte was a CR: a LF behind it belongs to it.
    after_cr: bool,
    /// Whether an event has ended since this was last reset.
    pub event_ended: bool,
}

impl Position {
    /// Goes on by these bytes; the number of events that ended in them.
    pub fn read(&mut self, bytes: &[u8]) -> u64 {
        let mut ended = 0;
        for &byte in bytes {
            let second_half = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            match byte {
                _ if second_half => {}
                b'\n' | b'\r' => {
                    if !self.in_line && self.in_event {
                        self.event_ended = true;
                        ended += 1;
                        self.in_event = false;
                    }
                    self.in_line = false;
                }
                _ => {
                    self.in_event |= !self.in_line && byte != b':';
                    self.in_line = true;
                }
            }
        }
        ended
    }

    /// Whether something may be put in here without touching an event.
    pub fn is_boundary(self) -> bool {
        !self.in_line && !self.in_event
    }
}
