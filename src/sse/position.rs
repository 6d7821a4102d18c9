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

    /// Goes on by these bytes, but no further than to the next place where something may be put in: how many bytes that
    /// takes (all, if there is none), and the number of events that ended in them.
    pub fn read_to_boundary(&mut self, bytes: &[u8]) -> (usize, u64) {
        let mut ended = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            ended += self.read(&[byte]);
            // A LF behind a CR still belongs to the line.
            let split = self.after_cr && bytes.get(at + 1) == Some(&b'\n');
            if self.is_boundary() && !split {
                return (at + 1, ended);
            }
        }
        (bytes.len(), ended)
    }

    /// Whether something may be put in here without touching an event.
    pub fn is_boundary(self) -> bool {
        !self.in_line && !self.in_event
    }
}
