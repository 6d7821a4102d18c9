//! `WS /api/v1/voice/stream`, the algorithm service's voice sessions.
//!
//! | caller | service |
//! |---|---|
//! | `{type: voice_start, session_id?, config?: {sample_rate, channels, language}}` | `session_started` with the config |
//! | `{type: voice_audio, session_id?, data: base64}`, or a binary frame | `asr_partial`, `asr_final` and `answer` with `text`, as [`super::recognizer`] has it |
//! | `{type: voice_stop, session_id?}` | `asr_final` and `answer` of what was begun, `session_stopped` with `audio_bytes`, `duration_ms` |
//!
//! Everything carries `session_id` and `timestamp`. Faults are `{type: error, code, error}`; the socket stays open.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::algorithm::Clock;
use super::recognizer::{Config, Recognizer, Understood};
use super::reply::timestamp;
use super::script::answer;
use super::socket::{Actor, Heard};

/// The longest session id, in characters.
const MAX_SESSION_ID: usize = 128;

/// One caller's voice.
pub(super) struct Voice {
    clock: Clock,
    session: Option<(String, Recognizer)>,
    /// Sessions that this socket had, for ids.
    sessions: u32,
}

/// What is wrong with a message: a code, and a sentence.
type Fault = (&'static str, String);

impl Voice {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, session: None, sessions: 0 }
    }

    fn message(&mut self, text: &str) -> Result<Vec<Value>, Fault> {
        let message: Value = serde_json::from_str(text)
            .map_err(|error| ("bad_message", format!("this is not JSON: {error}")))?;
        let given = message["session_id"].as_str();
        match message["type"].as_str() {
            Some("voice_start") => self.start(given, &message["config"]),
            Some("voice_audio") => {
                self.same(given)?;
                let data = message["data"].as_str().and_then(|data| STANDARD.decode(data).ok());
                let data = data.ok_or_else(|| ("bad_audio", "data must be audio in base64".to_owned()))?;
                self.audio(data.len() as u64)
            }
            Some("voice_stop") => {
                self.same(given)?;
                self.stop()
            }
            _ => Err(("unknown_type", "type must be voice_start, voice_audio or voice_stop".to_owned())),
        }
    }

    fn start(&mut self, given: Option<&str>, config: &Value) -> Result<Vec<Value>, Fault> {
        if self.session.is_some() {
            return Err(("already_started", "stop the running session first".to_owned()));
        }
        if given.is_some_and(|id| id.is_empty() || id.chars().count() > MAX_SESSION_ID) {
            let error = format!("session_id must have 1 to {MAX_SESSION_ID} characters");
            return Err(("bad_session_id", error));
        }
        let config = Config::read(Some(config)).map_err(|error| ("bad_config", error))?;
        self.sessions += 1;
        let id = given.map_or_else(|| format!("voice-{}", self.sessions), str::to_owned);
        let told = config.json();
        self.session = Some((id, Recognizer::new(config)));
        Ok(vec![self.event("session_started", json!({ "config": told }))])
    }

    fn audio(&mut self, bytes: u64) -> Result<Vec<Value>, Fault> {
        let (_, recognizer) = self.session.as_mut().ok_or_else(not_started)?;
        let understood = recognizer.hear(bytes);
        Ok(self.told(understood))
    }

    fn stop(&mut self) -> Result<Vec<Value>, Fault> {
        let (_, recognizer) = self.session.as_mut().ok_or_else(not_started)?;
        let understood = recognizer.end();
        let told = json!({ "audio_bytes": recognizer.bytes(), "duration_ms": recognizer.millis() });
        let mut events = self.told(understood);
        events.push(self.event("session_stopped", told));
        self.session = None;
        Ok(events)
    }

    /// That a message names the running session, if it names one.
    fn same(&self, given: Option<&str>) -> Result<(), Fault> {
        match (&self.session, given) {
            (Some((id, _)), Some(given)) if id != given => {
                Err(("unknown_session", "another session runs on this socket".to_owned()))
            }
            (None, _) => Err(not_started()),
            _ => Ok(()),
        }
    }

    fn told(&self, understood: Option<Understood>) -> Vec<Value> {
        match understood {
            None => Vec::new(),
            Some(Understood::Partial(text)) => vec![self.event("asr_partial", json!({ "text": text }))],
            Some(Understood::Final(text)) => vec![
                self.event("asr_final", json!({ "text": text, "confidence": 0.94 })),
                self.event("answer", json!({ "text": answer(&text) })),
            ],
        }
    }

    /// `type`, `session_id` where there is one, what is particular, `timestamp`.
    fn event(&self, name: &str, more: Value) -> Value {
        let mut event = json!({ "type": name });
        if let Some((id, _)) = &self.session {
            event["session_id"] = id.as_str().into();
        }
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        event["timestamp"] = timestamp((self.clock)()).into();
        event
    }
}

impl Actor for Voice {
    fn hear(&mut self, heard: Heard) -> Vec<Value> {
        let answer = match heard {
            Heard::Text(text) => self.message(&text),
            Heard::Binary(audio) => self.audio(audio.len() as u64),
        };
        answer.unwrap_or_else(|(code, error)| {
            vec![self.event("error", json!({ "code": code, "error": error }))]
        })
    }
}

fn not_started() -> Fault {
    ("not_started", "send voice_start first".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(events: &[Value]) -> Vec<&str> {
        events.iter().map(|event| event["type"].as_str().unwrap()).collect()
    }

    fn say(voice: &mut Voice, message: Value) -> Vec<Value> {
        voice.hear(Heard::Text(message.to_string()))
    }

    #[test]
    fn a_session_is_started_heard_answered_and_stopped() {
        let mut voice = Voice::new(|| jiff::Timestamp::UNIX_EPOCH);
        let started = say(&mut voice, json!({ "type": "voice_start", "session_id": "s" }));
        assert_eq!(
            started,
            [json!({ "type": "session_started", "session_id": "s",
                     "config": { "sample_rate": 16000, "channels": 1, "language": "zh-CN" },
                     "timestamp": "1970-01-01T00:00:00.000Z" })]
        );
        let audio = STANDARD.encode([0; 9600]);
        let heard = say(&mut voice, json!({ "type": "voice_audio", "session_id": "s", "data": audio }));
        assert_eq!((types(&heard), &heard[0]["text"]), (vec!["asr_partial"], &json!("今天")));
        let heard = voice.hear(Heard::Binary(vec![0; 3 * 9600].into()));
        assert_eq!(
            (types(&heard), &heard[0]["text"]),
            (vec!["asr_final", "answer"], &json!("今天的天气怎么样"))
        );
        voice.hear(Heard::Binary(vec![0; 9600].into()));
        let stopped = say(&mut voice, json!({ "type": "voice_stop" }));
        assert_eq!(types(&stopped), ["asr_final", "answer", "session_stopped"]);
        assert_eq!((&stopped[2]["audio_bytes"], &stopped[2]["duration_ms"]), (&json!(48_000), &json!(1500)));
        let again = say(&mut voice, json!({ "type": "voice_start" }));
        assert_eq!(again[0]["session_id"], "voice-2");
    }

    #[test]
    fn faults_are_told_and_end_nothing() {
        let mut voice = Voice::new(jiff::Timestamp::now);
        let fault = |voice: &mut Voice, message: &str| {
            let told = voice.hear(Heard::Text(message.to_owned()));
            assert_eq!(types(&told), ["error"], "{message}");
            told[0]["code"].as_str().unwrap().to_owned()
        };
        assert_eq!(fault(&mut voice, "{"), "bad_message");
        assert_eq!(fault(&mut voice, r#"{"type": "voice_audio", "data": ""}"#), "not_started");
        assert_eq!(fault(&mut voice, r#"{"type": "voice_stop"}"#), "not_started");
        assert_eq!(fault(&mut voice, r#"{"type": "shout"}"#), "unknown_type");
        assert_eq!(fault(&mut voice, r#"{"type": "voice_start", "session_id": ""}"#), "bad_session_id");
        assert_eq!(fault(&mut voice, r#"{"type": "voice_start", "config": {"channels": 9}}"#), "bad_config");
        assert_eq!(types(&say(&mut voice, json!({ "type": "voice_start" }))), ["session_started"]);
        assert_eq!(fault(&mut voice, r#"{"type": "voice_start"}"#), "already_started");
        assert_eq!(fault(&mut voice, r#"{"type": "voice_audio", "data": "%"}"#), "bad_audio");
        assert_eq!(
            fault(&mut voice, r#"{"type": "voice_audio", "session_id": "x", "data": ""}"#),
            "unknown_session"
        );
        assert_eq!(types(&say(&mut voice, json!({ "type": "voice_stop" }))), ["session_stopped"]);
    }
}
