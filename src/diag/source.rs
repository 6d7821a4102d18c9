//! The files a manifest was read from, and places in them.

use std::sync::Arc;

/// Which file of [`Sources`]; files are numbered in the order they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u16);

/// A place: a run of bytes in one file. Empty runs point between two characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The file.
    pub file: FileId,
    /// Offset of the first byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Span {
    /// A place in a file.
    pub fn new(file: FileId, start: usize, len: usize) -> Self {
        Span { file, start: start as u32, len: len as u32 }
    }

    /// Whether another place lies in this one.
    pub fn contains(self, other: Span) -> bool {
        let end = |span: Span| span.start + span.len;
        self.file == other.file && self.start <= other.start && end(other) <= end(self)
    }

    /// The part of this place from `offset` on, `len` bytes long (both clamped to it).
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> Self {
        let offset = (offset as u32).min(self.len);
        Span { file: self.file, start: self.start + offset, len: (len as u32).min(self.len - offset) }
    }
}

/// One file as it was read.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// The path as shown to people, relative to where the manifest was named.
    pub name: String,
    /// The text, whole.
    pub text: Arc<str>,
    lines: Vec<u32>,
}

impl SourceFile {
    /// Takes a file's name and text.
    pub fn new(name: impl Into<String>, text: impl Into<Arc<str>>) -> Self {
        let text: Arc<str> = text.into();
        let lines = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at as u32 + 1))
            .collect();
        SourceFile { name: name.into(), text, lines }
    }

    /// Line and column (characters, both from 1) of a byte offset.
    pub fn position(&self, offset: u32) -> (usize, usize) {
        let offset = (offset as usize).min(self.text.len());
        let line = self.lines.partition_point(|start| *start as usize <= offset).saturating_sub(1);
        let start = self.lines.get(line).map_or(0, |s| *s as usize);
        let column = self.text.get(start..offset).map_or(0, |s| s.chars().count());
        (line + 1, column + 1)
    }

    /// The text of a line (from 1), without its line break.
    pub fn line(&self, line: usize) -> &str {
        let start = self.lines.get(line.wrapping_sub(1)).map_or(self.text.len(), |s| *s as usize);
        let end = self.lines.get(line).map_or(self.text.len(), |s| *s as usize);
        self.text.get(start..end).unwrap_or_default().trim_end_matches(['\n', '\r'])
    }
}

/// All files of one manifest.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: Vec<SourceFile>,
}

impl Sources {
    /// Adds a file and numbers it.
    pub fn add(&mut self, file: SourceFile) -> FileId {
        self.files.push(file);
        FileId((self.files.len() - 1) as u16)
    }

    /// The file of a number.
    pub fn get(&self, id: FileId) -> Option<&SourceFile> {
        self.files.get(id.0 as usize)
    }

    /// Every file in reading order.
    pub fn iter(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter()
    }

    /// `file:line:column` of a place.
    pub fn place(&self, span: Span) -> String {
        match self.get(span.file) {
            Some(file) => {
                let (line, column) = file.position(span.start);
                format!("{}:{line}:{column}", file.name)
            }
            None => "?".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let file = SourceFile::new("f", "a\né日x\n");
        assert_eq!(file.position(0), (1, 1));
        assert_eq!(file.position(2), (2, 1));
        assert_eq!(file.position(7), (2, 3), "x stands behind two characters of five bytes");
        assert_eq!(file.line(2), "é日x");
        assert_eq!(file.line(9), "");
        assert_eq!(file.position(999), (3, 1));
    }
}
