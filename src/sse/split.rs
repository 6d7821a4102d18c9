//! An event stream cut into its events.

use super::Position;
use bytes::{Buf, BytesMut};

/// Cuts a stream into events as its bytes come. What belongs to no event (comments, empty lines) is left out.
#[derive(Debug, Default)]
pub struct Splitter {
    /// What has come of the event under way.
    held: BytesMut,
    /// Bytes of `held` that were looked at.
    seen: usize,
    position: Position,
}

impl Splitter {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole event: its lines, each with its end, without the empty line behind them.
    pub fn next_event(&mut self) -> Option<BytesMut> {
        while let Some(byte) = self.held.get(self.seen) {
            let at = self.seen;
            self.seen += 1;
            let ended = self.position.read(std::slice::from_ref(byte)) > 0;
            if ended {
                let event = self.held.split_to(at);
                // The empty line's own end; the second half of a CRLF follows as an empty line of no event.
                self.held.advance(1);
                self.seen = 0;
                return Some(event);
            }
            if self.position.is_boundary() {
                // Comments and empty lines.
                self.held.advance(self.seen);
                self.seen = 0;
            }
        }
        None
    }

    /// Bytes of the event under way.
    pub fn pending(&self) -> usize {
        self.held.len()
    }
}

/// Values of a field in an event's lines, in order (WHATWG HTML, section 9.2.6). Invalid UTF-8 is left out.
pub fn fields<'e>(event: &'e [u8], name: &'e str) -> impl Iterator<Item = &'e str> {
    event.split(|byte| matches!(byte, b'\n' | b'\r')).filter_map(move |line| {
        let rest = line.strip_prefix(name.as_bytes())?;
        let value = match rest.first() {
            None => rest,
            Some(b':') => rest[1..].strip_prefix(b" ").unwrap_or(&rest[1..]),
            Some(_) => return None,
        };
        std::str::from_utf8(value).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut all = Vec::new();
        for piece in pieces {
            splitter.push(piece);
            while let Some(event) = splitter.next_event() {
                all.push(String::from_utf8(event.to_vec()).unwrap());
            }
        }
        all
    }

    #[test]
    fn events_are_cut_at_empty_lines_of_every_kind() {
        let stream = b": hi\n\ndata: a\n\nevent: x\r\ndata: b\r\n\r\ndata: c\r\r: bye\n\ndata: d";
        assert_eq!(events(&[stream]), ["data: a\n", "event: x\r\ndata: b\r\n", "data: c\r"]);
    }

    #[test]
    fn comments_inside_an_event_stay_with_it() {
        assert_eq!(events(&[b"data: a\n: note\ndata: b\n\n"]), ["data: a\n: note\ndata: b\n"]);
    }

    #[test]
    fn comments_hold_no_memory() {
        let mut splitter = Splitter::default();
        for _ in 0..1000 {
            splitter.push(b": still here\n\n");
            assert!(splitter.next_event().is_none());
        }
        assert_eq!(splitter.pending(), 0);
    }

    #[test]
    fn fields_are_read_as_the_standard_says() {
        let event = b"data: a\ndata:b\ndata\ndatum: c\n:data: d\ndata:  e\r\n";
        assert_eq!(fields(event, "data").collect::<Vec<_>>(), ["a", "b", "", " e"]);
    }

    proptest! {
        #[test]
        fn where_the_pieces_end_changes_nothing(
            lines in proptest::collection::vec("(data: [a-z]{0,3}|: c|event: x|)(\n|\r\n|\r)", 0..30),
            cut in 1usize..7,
        ) {
            let whole = lines.concat().into_bytes();
            let pieces: Vec<&[u8]> = whole.chunks(cut).collect();
            prop_assert_eq!(events(&[&whole]), events(&pieces));
        }
    }
}
