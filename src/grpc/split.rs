//! A body of many JSON values, taken apart while it comes: one a line (NDJSON), behind each other, or items of a list.

use bytes::{Bytes, BytesMut};

/// Why bytes are no JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// A value above the limit.
    #[error("a message is larger than {0} bytes")]
    TooLarge(u64),
    /// Something between two values that may not be there.
    #[error("the body is neither JSON values behind each other nor a list of them")]
    Stray,
    /// The body ends inside a value or a list.
    #[error("the body ends inside a message")]
    Unfinished,
}

/// Takes values out of a stream of bytes.
#[derive(Debug)]
pub struct Splitter {
    buffer: BytesMut,
    limit: u64,
    /// Bytes of the buffer that were looked at.
    seen: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    list: Place,
}

/// Where in a list we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing has come yet.
    Start,
    /// There is none: values stand behind each other.
    None,
    /// An item may come, or the end.
    First,
    /// A comma or the end must come.
    Between,
    /// Behind a comma: an item must come.
    Item,
    /// Behind the end.
    Over,
}

impl Splitter {
    /// For values of at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Splitter {
            buffer: BytesMut::new(),
            limit,
            seen: 0,
            depth: 0,
            in_string: false,
            escaped: false,
            list: Place::Start,
        }
    }

    /// More bytes came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole value.
    ///
    /// # Errors
    /// [`SplitError`]; nothing behind it can be read.
    pub fn pull(&mut self) -> Result<Option<Bytes>, SplitError> {
        if self.seen == 0 && !self.begin()? {
            return Ok(None);
        }
        while let Some(&byte) = self.buffer.get(self.seen) {
            let ends_before = self.depth == 0
                && self.seen > 0
                && !self.in_string
                && (byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'{' | b'[' | b'"'));
            if ends_before {
                return Ok(Some(self.take()));
            }
            self.seen += 1;
            if self.seen as u64 > self.limit {
                return Err(SplitError::TooLarge(self.limit));
            }
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => {
                    self.in_string = !self.in_string;
                    if !self.in_string && self.depth == 0 {
                        return Ok(Some(self.take()));
                    }
                }
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.checked_sub(1).ok_or(SplitError::Stray)?;
                    if self.depth == 0 {
                        return Ok(Some(self.take()));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The last value, once the body is over: a number or a word has no end of its own.
    ///
    /// # Errors
    /// Where it ends inside a value or a list.
    pub fn finish(&mut self) -> Result<Option<Bytes>, SplitError> {
        if self.depth > 0 || self.in_string {
            return Err(SplitError::Unfinished);
        }
        let last = (self.seen > 0).then(|| self.take());
        match self.list {
            Place::First | Place::Between | Place::Item => Err(SplitError::Unfinished),
            Place::Start | Place::None | Place::Over => Ok(last),
        }
    }

    /// Goes over what stands between values; whether one begins.
    fn begin(&mut self) -> Result<bool, SplitError> {
        loop {
            let blank = self.buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let _ = self.buffer.split_to(blank);
            let Some(&byte) = self.buffer.first() else { return Ok(false) };
            let next = match (self.list, byte) {
                (Place::Start, b'[') => Place::First,
                (Place::First | Place::Between, b']') => Place::Over,
                (Place::Between, b',') => Place::Item,
                (Place::Between | Place::Over, _) | (_, b']' | b',' | b'}') => return Err(SplitError::Stray),
                (Place::Start, _) => {
                    self.list = Place::None;
                    return Ok(true);
                }
                (Place::None | Place::First | Place::Item, _) => return Ok(true),
            };
            self.list = next;
            let _ = self.buffer.split_to(1);
        }
    }

    fn take(&mut self) -> Bytes {
        if self.list != Place::None {
            self.list = Place::Between;
        }
        let taken = self.buffer.split_to(self.seen).freeze();
        self.seen = 0;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str, piece: usize) -> Result<Vec<String>, SplitError> {
        let mut splitter = Splitter::new(40);
        let mut found = Vec::new();
        for bytes in text.as_bytes().chunks(piece) {
            splitter.push(bytes);
            while let Some(value) = splitter.pull()? {
                found.push(String::from_utf8(value.to_vec()).unwrap());
            }
        }
        found.extend(splitter.finish()?.map(|value| String::from_utf8(value.to_vec()).unwrap()));
        Ok(found)
    }

    #[test]
    fn values_come_out_however_they_were_cut() {
        let cases: &[(&str, &[&str])] = &[
            ("{\"a\":1}\n{\"b\":\"}\\\"]\"}\n", &["{\"a\":1}", "{\"b\":\"}\\\"]\"}"]),
            ("{}{} 1 2\"x\"true", &["{}", "{}", "1", "2", "\"x\"", "true"]),
            ("[ {\"a\":[1,2]} , {} ]\n", &["{\"a\":[1,2]}", "{}"]),
            ("[1,\"a\",[2]]", &["1", "\"a\"", "[2]"]),
            ("[]", &[]),
            (" \r\n", &[]),
        ];
        for (text, wanted) in cases {
            for piece in [1, 2, 3, 100] {
                assert_eq!(split(text, piece).as_deref(), Ok(&wanted.map_owned()[..]), "{text} by {piece}");
            }
        }
    }

    trait Owned {
        fn map_owned(&self) -> Vec<String>;
    }

    impl Owned for &[&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(|&text| text.to_owned()).collect()
        }
    }

    #[test]
    fn what_is_no_sequence_is_refused() {
        for text in ["[{}", "[{},", "{\"a\":", "[", "\"a"] {
            assert_eq!(split(text, 100), Err(SplitError::Unfinished), "{text}");
        }
        for text in ["[{},]", "[,]", "[{} {}]", "[] {}", "}", "{},{}"] {
            assert_eq!(split(text, 100), Err(SplitError::Stray), "{text}");
        }
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(100));
        assert_eq!(split(&long, 7), Err(SplitError::TooLarge(40)));
    }
}
