//! Speech in one piece: uploads that are counted as they come, and tones for texts.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /api/v1/voice/transcribe` | multipart with an `audio` part | `{text, confidence, language, bytes, content_type, parts}` |
//! | `POST /voice/query` | the same | `{query, answer, language, bytes}` |
//! | `POST /api/v1/voice/synthesize` | `{text, voice?, format?}` | `audio/wav`: a tone for each character, streamed |
//!
//! Nothing is kept of an upload but counts, so it may be of any length. `?language=en-US` chooses another than Chinese.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{Body, Refusal, json_response, parse};
use super::script::answer;
use crate::multipart::{Event, Scanner};

/// Samples a second of what is synthesized.
const RATE: u32 = 16_000;
/// Samples of one character's tone: 80 ms.
const TONE: usize = 1280;
/// The longest text, in characters.
const MAX_TEXT: usize = 2000;
/// Between two tones on their way out: as fast as they play would be slow to try.
const PACE: Duration = Duration::from_millis(2);
/// The header of a WAV file with one `fmt ` and one `data` chunk, in bytes.
const HEADER: usize = 44;

/// The body of `synthesize`.
#[derive(Deserialize)]
struct Text {
    text: String,
    voice: Option<String>,
    format: Option<String>,
}

/// What an upload brought.
#[derive(Default)]
struct Upload {
    parts: u32,
    /// Whether the part that is being read is the audio.
    inside: bool,
    content_type: Option<String>,
    bytes: u64,
}

/// Answers `transcribe`, or where `ask` is set `query`.
pub(super) async fn transcribe(request: Request<Incoming>, ask: bool) -> Result<Response<Body>, Refusal> {
    let query = request.uri().query().unwrap_or_default();
    let language = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "language");
    let language = language.map_or_else(|| "zh-CN".to_owned(), |(_, language)| language.into_owned());
    let upload = read(request).await?;
    let text = match (upload.bytes, language.starts_with("zh")) {
        (0, _) => return Err(Refusal::invalid("the part `audio` is missing or empty")),
        (_, true) => "今天的天气怎么样",
        (_, false) => "What is the weather like today",
    };
    let told: Value = match ask {
        true => json!({ "query": text, "answer": answer(text), "language": language, "bytes": upload.bytes }),
        false => json!({ "text": text, "confidence": 0.94, "language": language, "bytes": upload.bytes,
                         "content_type": upload.content_type, "parts": upload.parts }),
    };
    Ok(json_response(StatusCode::OK, &told))
}

/// Counts an upload as it comes.
async fn read(request: Request<Incoming>) -> Result<Upload, Refusal> {
    let unreadable = |error: crate::multipart::Malformed| Refusal::bad_request(error.to_string());
    let mut scanner = Scanner::of(request.headers()).map_err(unreadable)?;
    let mut body = request.into_body();
    let mut upload = Upload::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::bad_request(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let mut noted = |event: Event<'_>| {
            match event {
                Event::Part(head) => {
                    upload.parts += 1;
                    upload.inside = head.name == "audio";
                    if upload.inside {
                        upload.content_type = head.content_type.map(str::to_owned);
                    }
                }
                Event::Data(bytes) if upload.inside => upload.bytes += bytes,
                Event::Data(_) => {}
            }
            Ok(())
        };
        scanner.feed(&data, &mut noted).map_err(unreadable)?;
    }
    scanner.end().map_err(unreadable)?;
    Ok(upload)
}

/// Answers `synthesize`.
pub(super) fn synthesize(body: &[u8]) -> Result<Response<Body>, Refusal> {
    let Text { text, voice, format } = parse(body)?;
    if text.trim().is_empty() || text.chars().count() > MAX_TEXT {
        return Err(Refusal::invalid(format!("text must have 1 to {MAX_TEXT} characters")));
    }
    if format.as_deref().is_some_and(|format| format != "wav") {
        return Err(Refusal::invalid("format must be wav"));
    }
    let base = match voice.as_deref() {
        None | Some("default" | "female") => 330.0,
        Some("male") => 165.0,
        Some(_) => return Err(Refusal::invalid("voice must be default, female or male")),
    };
    let tones: Vec<f32> = text.chars().map(|character| pitch(base, character)).collect();
    let header = wav_header(tones.len() * TONE * 2);
    let pieces = stream::unfold((Some(header), tones.into_iter()), |(header, mut tones)| async move {
        let piece = match header {
            Some(header) => header,
            None => {
                tokio::time::sleep(PACE).await;
                tone(tones.next()?)
            }
        };
        Some((Ok(Frame::data(piece)), (None, tones)))
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("audio/wav"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A character's pitch, within an octave; space is silence.
fn pitch(base: f32, character: char) -> f32 {
    match character.is_whitespace() {
        true => 0.0,
        false => base * 2f32.powf((character as u32 % 12) as f32 / 12.0),
    }
}

/// A sine of 16-bit samples that swells and fades, so that it does not click.
fn tone(pitch: f32) -> Bytes {
    let sample = |at: usize| {
        let place = at as f32 / TONE as f32;
        let swell = (place * std::f32::consts::PI).sin();
        let wave = (at as f32 / RATE as f32 * pitch * std::f32::consts::TAU).sin();
        ((wave * swell * 0.3 * f32::from(i16::MAX)) as i16).to_le_bytes()
    };
    (0..TONE).flat_map(sample).collect::<Vec<u8>>().into()
}

/// RIFF/WAVE: PCM, mono, 16 bit, with so many bytes of samples behind it.
fn wav_header(length: usize) -> Bytes {
    let mut header = Vec::with_capacity(HEADER);
    let number = |header: &mut Vec<u8>, number: u32| header.extend_from_slice(&number.to_le_bytes());
    header.extend_from_slice(b"RIFF");
    // MAX_TEXT tones are far below 4 GiB.
    number(&mut header, (HEADER - 8 + length) as u32);
    header.extend_from_slice(b"WAVEfmt ");
    number(&mut header, 16);
    header.extend_from_slice(&[1, 0, 1, 0]);
    number(&mut header, RATE);
    number(&mut header, RATE * 2);
    header.extend_from_slice(&[2, 0, 16, 0]);
    header.extend_from_slice(b"data");
    number(&mut header, length as u32);
    header.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_synthesized_is_a_wav_file_of_its_length() {
        let response = synthesize("{\"text\": \"你好 x\"}".as_bytes()).unwrap();
        assert_eq!(response.headers()["content-type"], "audio/wav");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let number = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((&body[..4], &body[8..16], &body[36..40]), (&b"RIFF"[..], &b"WAVEfmt "[..], &b"data"[..]));
        assert_eq!((number(4) + 8, number(40) + HEADER), (body.len(), body.len()));
        assert_eq!((number(24), body.len()), (RATE as usize, HEADER + 4 * TONE * 2));
        let sound = |tone: usize| body[HEADER + tone * TONE * 2..][..TONE * 2].iter().any(|byte| *byte != 0);
        assert_eq!([0, 1, 2, 3].map(sound), [true, true, false, true], "a space is silence");
    }

    #[test]
    fn what_cannot_be_spoken_is_refused() {
        for body in
            ["{}", r#"{"text": " "}"#, r#"{"text": "a", "format": "mp3"}"#, r#"{"text": "a", "voice": "x"}"#]
        {
            assert_eq!(synthesize(body.as_bytes()).err().unwrap().status, 422, "{body}");
        }
    }
}
