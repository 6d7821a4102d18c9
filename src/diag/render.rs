//! Faults for people (excerpt and caret), for machines (JSON) and for code review (GitHub annotations).

use super::{Diagnostic, Diagnostics, Severity, Sources};
use std::borrow::Cow;
use std::fmt::Write as _;

/// How to render.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// With excerpt and caret.
    #[default]
    Human,
    /// One JSON document.
    Json,
    /// One `::error file=…` line a fault (GitHub workflow commands).
    Github,
}

/// Whether to colour the human form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Palette {
    /// ANSI colours.
    Colour,
    /// Plain text.
    Plain,
}

/// Renders every fault, in the order they stand.
pub fn render(diagnostics: &Diagnostics, sources: &Sources, format: Format, palette: Palette) -> String {
    match format {
        Format::Human => {
            diagnostics.iter().map(|d| human(d, sources, palette)).collect::<Vec<_>>().join("\n")
        }
        Format::Json => json(diagnostics, sources),
        Format::Github => diagnostics.iter().map(|d| github(d, sources)).collect(),
    }
}

/// Characters of a line that an excerpt shows.
const LONGEST: usize = 300;

fn human(d: &Diagnostic, sources: &Sources, palette: Palette) -> String {
    let paint = |code: &str, text: &str| match palette {
        Palette::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        Palette::Plain => text.to_owned(),
    };
    let tone = if d.severity == Severity::Error { "1;31" } else { "1;33" };
    let mut out = String::new();
    let head = format!("{}[{}]", d.severity.word(), d.code);
    let _ = writeln!(out, "{}: {}", paint(tone, &head), paint("1", &shown(&d.message)));
    let Some((span, file)) = d.span.and_then(|s| Some((s, sources.get(s.file)?))) else {
        if let Some(help) = &d.help {
            let _ = writeln!(out, "  = help: {}", shown(help));
        }
        return out;
    };
    let numbers: Vec<usize> = std::iter::once(file.position(span.start).0)
        .chain(d.notes.iter().filter_map(|(s, _)| Some(sources.get(s.file)?.position(s.start).0)))
        .collect();
    let width = numbers.iter().max().map_or(1, |n| n.to_string().len());
    let gutter = " ".repeat(width);
    let mut excerpt = |arrow: &str, place: super::Span, caret: char, text: &str| {
        let Some(file) = sources.get(place.file) else { return };
        let (line, column) = file.position(place.start);
        // Of a line without end, as JSON in one line has it, what is about the place.
        let whole = file.line(line);
        let long = whole.chars().count() > LONGEST;
        let from = if long { (column - 1).saturating_sub(LONGEST / 3) } else { 0 };
        let before = if from > 0 { "…" } else { "" };
        let shown_part = whole.chars().skip(from).take(LONGEST).map(plain);
        let source: String = before.chars().chain(shown_part).collect();
        let left = before.chars().count() + column - 1 - from;
        let left: String = source.chars().take(left).map(blank_of).collect();
        let covered = file.text.get(place.start as usize..(place.start + place.len) as usize).unwrap_or("");
        let carets = covered
            .lines()
            .next()
            .unwrap_or("")
            .chars()
            .take(LONGEST / 2)
            .map(width_of)
            .sum::<usize>()
            .max(1);
        let bar = paint("34", "|");
        let _ = writeln!(out, "{gutter}{} {}:{line}:{column}", paint("34", arrow), shown(&file.name));
        let _ = writeln!(out, "{gutter} {bar}");
        let _ = writeln!(out, "{} {bar} {source}", paint("34", &format!("{line:width$}")));
        let marks = paint(tone, &caret.to_string().repeat(carets));
        let _ = writeln!(out, "{}", format!("{gutter} {bar} {left}{marks} {}", shown(text)).trim_end());
    };
    let help = d.help.as_ref().map(|h| format!("help: {h}")).unwrap_or_default();
    excerpt("-->", span, '^', &help);
    for (place, text) in &d.notes {
        excerpt(":::", *place, '-', text);
    }
    out
}

/// Whether a character acts on a terminal instead of showing: controls, and what turns the direction of writing.
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text with nothing in it that acts on a terminal or begins a line: a name in a manifest is only quoted.
fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if acts(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// A character of an excerpt, as wide as it was counted.
fn plain(c: char) -> char {
    match c {
        '\t' => ' ',
        c if acts(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

/// What stands in for a character left of the caret: as wide as it is on a terminal.
fn blank_of(c: char) -> &'static str {
    if width_of(c) == 2 { "  " } else { " " }
}

/// Columns of a character on a terminal: CJK and full-width forms take two (UAX #11, the blocks manifests meet).
fn width_of(c: char) -> usize {
    match c as u32 {
        0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F => 2,
        0xFF00..=0xFF60 | 0xFFE0..=0xFFE6 | 0x1F300..=0x1FAFF | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

fn json(diagnostics: &Diagnostics, sources: &Sources) -> String {
    let place = |span: super::Span| {
        let file = sources.get(span.file)?;
        let (line, column) = file.position(span.start);
        let (end_line, end_column) = file.position(span.start + span.len);
        Some(serde_json::json!({
            "file": file.name, "line": line, "column": column, "end_line": end_line, "end_column": end_column,
        }))
    };
    let items: Vec<_> = diagnostics
        .iter()
        .map(|d| {
            serde_json::json!({
                "code": d.code.to_string(),
                "severity": d.severity.word(),
                "message": d.message,
                "help": d.help,
                "at": d.span.and_then(place),
                "notes": d.notes.iter().map(|(s, text)| serde_json::json!({"at": place(*s), "message": text})).collect::<Vec<_>>(),
            })
        })
        .collect();
    let (errors, warnings) = diagnostics.counts();
    let document = serde_json::json!({"errors": errors, "warnings": warnings, "diagnostics": items});
    format!("{document:#}\n")
}

fn github(d: &Diagnostic, sources: &Sources) -> String {
    let data = |s: &str| s.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |s: &str| data(s).replace(':', "%3A").replace(',', "%2C");
    let mut at = String::new();
    if let Some((span, file)) = d.span.and_then(|s| Some((s, sources.get(s.file)?))) {
        let (line, column) = file.position(span.start);
        let _ = write!(at, "file={},line={line},col={column},", property(&file.name));
    }
    let help = d.help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
    format!("::{} {at}title={}::{}\n", d.severity.word(), d.code, data(&format!("{}{help}", d.message)))
}

#[cfg(test)]
mod tests {
    use super::super::{Code, SourceFile, Span};
    use super::*;

    fn one() -> (Diagnostics, Sources) {
        let mut sources = Sources::default();
        let file = sources.add(SourceFile::new("routes.yaml", "a: 1\n        upstream: alog\n"));
        let mut all = Diagnostics::new();
        all.push(
            Diagnostic::error(
                Code::UNKNOWN_UPSTREAM,
                Span::new(file, 23, 4),
                "upstream `alog` is not defined",
            )
            .help("did you mean `algo`?"),
        );
        (all, sources)
    }

    #[test]
    fn a_fault_looks_like_the_design_says() {
        let (all, sources) = one();
        let text = render(&all, &sources, Format::Human, Palette::Plain);
        let expected = "\
error[VG031]: upstream `alog` is not defined
 --> routes.yaml:2:19
  |
2 |         upstream: alog
  |                   ^^^^ help: did you mean `algo`?
";
        assert_eq!(text, expected);
    }

    #[test]
    fn machines_get_json_and_annotations() {
        let (all, sources) = one();
        let json: serde_json::Value =
            serde_json::from_str(&render(&all, &sources, Format::Json, Palette::Plain)).unwrap();
        assert_eq!(json["diagnostics"][0]["at"]["column"], 19);
        assert_eq!(json["errors"], 1);
        let line = render(&all, &sources, Format::Github, Palette::Plain);
        assert_eq!(
            line,
            "::error file=routes.yaml,line=2,col=19,title=VG031::upstream `alog` is not defined (did you mean `algo`?)\n"
        );
    }

    #[test]
    fn carets_stand_under_wide_characters() {
        let mut sources = Sources::default();
        let file = sources.add(SourceFile::new("f", "日本: x\n"));
        let mut all = Diagnostics::new();
        all.push(Diagnostic::error(Code::BAD_VALUE, Span::new(file, 8, 1), "no"));
        let text = render(&all, &sources, Format::Human, Palette::Plain);
        assert!(text.ends_with("1 | 日本: x\n  |       ^\n"), "{text}");
    }

    #[test]
    fn nothing_a_manifest_says_acts_on_the_terminal() {
        let mut sources = Sources::default();
        let file = sources.add(SourceFile::new("f", "a: \u{1b}[2J\u{202e}x\n"));
        let mut all = Diagnostics::new();
        let fault = Diagnostic::error(Code::BAD_VALUE, Span::new(file, 0, 1), "key `\u{1b}[2J\nok: x`");
        all.push(fault.help("or `\u{7}`"));
        let text = render(&all, &sources, Format::Human, Palette::Plain);
        assert!(!text.contains(|c: char| c != '\n' && acts(c)), "{text:?}");
        assert!(text.starts_with("error[VG011]: key `\\u{1b}[2J\\nok: x`\n"), "{text}");
        assert!(text.ends_with("1 | a: \u{fffd}[2J\u{fffd}x\n  | ^ help: or `\\u{7}`\n"), "{text}");
    }
}
